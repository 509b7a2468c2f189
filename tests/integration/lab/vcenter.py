"""A labvc process and a pyVmomi session on it, for the contract tests of the site's server program."""

import json
import socket
import ssl
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyVim.connect import Disconnect, SmartConnect, SmartStubAdapter
from pyVmomi import vim, vmodl
from vmhaul_lab.site import LabSite

USER = "administrator@vsphere.local"
PASSWORD = "contract"
MIB = 1 << 20

_PAUSE = threading.Event()


class Site:
    """A running labvc; `ready` is its ready line."""

    def __init__(self, process: subprocess.Popen[str], ready: dict[str, Any]) -> None:
        self.process = process
        self.ready = ready
        self.hosts: dict[str, str] = {host["name"]: host["address"] for host in ready["hosts"]}

    def control(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"http://{self.ready['control']}{path}",
            data=None if body is None else json.dumps(body).encode(),
            method=method,
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as answer:
            return json.loads(answer.read())

    def fault(self, kind: str, **params: Any) -> int:
        return int(self.control("POST", "/faults", {"kind": kind, **params})["id"])

    def fired(self, fault_id: int) -> int:
        return next(int(f["fired"]) for f in self.control("GET", "/faults") if f["id"] == fault_id)

    def disk(self, vm: str, key: int = 2000) -> dict[str, Any]:
        found: list[dict[str, Any]] = self.control("GET", "/disks")
        return next(d for d in found if d["vm"] == vm and d["key"] == key)

    def live(self, vm: str, key: int = 2000) -> Path:
        return Path(self.disk(vm, key)["live_file"])

    def write(self, vm: str, offset: int, data: bytes, key: int = 2000) -> None:
        with self.live(vm, key).open("r+b") as file:
            file.seek(offset)
            file.write(data)


@contextmanager
def running(binary: Path, directory: Path, site: dict[str, Any]) -> Iterator[Site]:
    directory.mkdir(parents=True, exist_ok=True)
    description = directory / "site.json"
    description.write_text(json.dumps(site))
    with (directory / "labvc.log").open("w") as log:
        process = subprocess.Popen(
            [binary, "-site", description, "-stdinexit"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, (directory / "labvc.log").read_text()
            yield Site(process, json.loads(line))
        finally:
            process.stdin.close()
            process.wait(timeout=20)
            process.stdout.close()


def wait_until(done: Callable[[], bool]) -> None:
    """Until it comes true, half a minute at most."""
    for _ in range(3000):
        if done():
            return
        _PAUSE.wait(0.01)
    raise AssertionError("this did not happen in half a minute")


class Session:
    """A logged-in pyVmomi session with the few helpers that the tests need."""

    def __init__(self, vcenter: str, user: str = USER, password: str = PASSWORD) -> None:
        self.si = connect(vcenter, user, password)
        self.content = self.si.RetrieveContent()

    def props(self, obj: Any, *paths: str) -> dict[str, Any]:
        pc = vmodl.query.PropertyCollector
        spec = pc.FilterSpec(
            objectSet=[pc.ObjectSpec(obj=obj)],
            propSet=[pc.PropertySpec(type=type(obj), pathSet=list(paths))],
        )
        found = self.content.propertyCollector.RetrievePropertiesEx([spec], pc.RetrieveOptions())
        return {p.name: p.val for p in found.objects[0].propSet}

    def get(self, obj: Any, path: str) -> Any:
        return self.props(obj, path).get(path)

    def wait(self, task: Any) -> Any:
        """The task's result; its fault as exception."""
        while True:
            info = self.get(task, "info")
            if info.state == "success":
                return info.result
            if info.state == "error":
                raise info.error
            _PAUSE.wait(0.02)

    def all(self, kind: Any) -> list[Any]:
        view = self.content.viewManager.CreateContainerView(self.content.rootFolder, [kind], True)
        found = list(view.view)
        view.Destroy()
        return found

    def vm(self, name: str) -> Any:
        return next(vm for vm in self.all(vim.VirtualMachine) if vm.name == name)

    def disks(self, owner: Any) -> list[Any]:
        """Disks of a VM or of a snapshot."""
        devices = self.get(owner, "config").hardware.device
        return [d for d in devices if isinstance(d, vim.vm.device.VirtualDisk)]

    def disk(self, owner: Any, key: int = 2000) -> Any:
        return next(d for d in self.disks(owner) if d.key == key)

    def snapshot(self, vm: Any, name: str = "snap") -> Any:
        return self.wait(vm.CreateSnapshot_Task(name, "", False, False))

    def areas(self, vm: Any, snapshot: Any, key: int, change_id: str) -> list[tuple[int, int]]:
        """All changed areas, paged to the end."""
        capacity = self.disk(snapshot, key).capacityInBytes
        offset, found = 0, []
        while offset < capacity:
            info = vm.QueryChangedDiskAreas(snapshot, key, offset, change_id)
            assert info.startOffset == offset
            assert info.length > 0
            found += [(area.start, area.length) for area in info.changedArea or []]
            offset = info.startOffset + info.length
        return found

    def attempt(self, action: Callable[[], Any]) -> Any:
        """The fault that an action raises, at once or from its task."""
        try:
            made = action()
            if isinstance(made, vim.Task):
                made = self.wait(made)
        except vmodl.MethodFault as fault:
            return fault
        raise AssertionError(f"no fault but {made}")

    def wait_until(self, done: Callable[[], bool]) -> None:
        wait_until(done)

    def close(self) -> None:
        Disconnect(self.si)


def unchecked() -> ssl.SSLContext:
    """For certificates that were made up a moment ago, on loopback."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def connect(vcenter: str, user: str, password: str) -> Any:
    host, _, port = vcenter.rpartition(":")
    return SmartConnect(host=host, port=int(port), user=user, pwd=password, sslContext=unchecked())


@contextmanager
def stranger(site: Site) -> Iterator[Any]:
    """The service's content without a session."""
    host, _, port = site.ready["vcenter"].rpartition(":")
    stub = SmartStubAdapter(host=host, port=int(port), sslContext=unchecked())
    try:
        yield vim.ServiceInstance("ServiceInstance", stub).RetrieveContent()
    finally:
        stub.DropConnections()


@contextmanager
def session(site: Site, user: str = USER, password: str = PASSWORD) -> Iterator[Session]:
    made = Session(site.ready["vcenter"], user, password)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def lab_session(site: LabSite) -> Iterator[Session]:
    """A session of a site that the lab's own Python side started."""
    made = Session(site.address, site.user, site.password)
    try:
        yield made
    finally:
        made.close()


def dial(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    made = socket.create_connection((host, int(port)), timeout=20)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made
