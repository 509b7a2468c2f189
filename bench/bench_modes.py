"""Every transport mode beside the plainest program that reads the same storage.

    python -m bench.bench_modes [--size-mib 768] [--rounds 3] [--directory DIR]

One disk of bytes that do not compress, in a simulated site on this machine: a loop device that a proxy's VM was given
(HotAdd), a file on VMFS on a LUN (direct SAN), a file on an NFS export (direct NFS), an ESXi host's NFC connection
(network). `dd` reads the same device past the page cache; where no `dd` can reach (NFS without a mount, NFC), a bare
connection of the same kind over loopback stands in. Rounds alternate; the best of each counts. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.aims import Aim, at_least
from transports import registry, vsphere
from transports.base import DiskReader, DiskRef, ReadRequest, TransportMode
from transports.direct_file import DirectFile
from transports.extent_reader import ExtentMap, ExtentReader
from transports.machine import Machine
from transports.registry import Access, ModeOptions
from transports.vsphere.model import Endpoint, Login, Secret

MIB = 1 << 20
NO_WORSE_SHARE = 0.9
LUN, NFS, PLAIN = "lun", "nfs", "plain"


def read_whole(reader: DiskReader) -> float:
    """Seconds to read the disk as the data mover does: whole blocks, as many at once as the mode takes."""
    size = reader.size_bytes
    free = [memoryview(bytearray(MIB)) for _ in range(reader.capabilities.requests_in_flight)]

    def requests() -> Iterator[ReadRequest]:
        for offset in range(0, size, MIB):
            yield ReadRequest(offset, free.pop()[: min(MIB, size - offset)])

    began = time.perf_counter()
    for answer in reader.read_many(requests()):
        free.append(answer.buffer)  # noqa: PERF401 - drawing a request takes from the same list
    return time.perf_counter() - began


def dd(path: Path, size_bytes: int, *, skip_bytes: int = 0) -> float:
    began = time.perf_counter()
    subprocess.run(
        [
            *("dd", f"if={path}", "of=/dev/null", "bs=1M", "iflag=direct,skip_bytes,count_bytes"),
            *(f"skip={skip_bytes}", f"count={size_bytes}", "status=none"),
        ],
        check=True,
    )
    return time.perf_counter() - began


def stream(size_bytes: int, directory: Path, *, tls: bool) -> float:
    """Seconds for so many bytes over one loopback connection, from a process to this one."""
    listener = socket.create_server(("127.0.0.1", 0))
    key = directory / "stream.pem"
    if tls and not key.exists():
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"),
                *("-keyout", key, "-out", directory / "stream.crt", "-days", "1"),
            ],
            check=True,
            capture_output=True,
        )
    pid = os.fork()
    if pid == 0:
        _serve(listener, size_bytes, key if tls else None, directory / "stream.crt")
        os._exit(0)
    try:
        with closing(socket.create_connection(listener.getsockname())) as plain:
            carrier: socket.socket = plain
            if tls:
                context = ssl.create_default_context(cafile=directory / "stream.crt")
                carrier = context.wrap_socket(plain, server_hostname="localhost")
            buffer = memoryview(bytearray(MIB))
            began, done = time.perf_counter(), 0
            while done < size_bytes:
                done += carrier.recv_into(buffer)
            return time.perf_counter() - began
    finally:
        listener.close()
        os.waitpid(pid, 0)


def _serve(listener: socket.socket, size_bytes: int, key: Path | None, certificate: Path) -> None:
    connection, _ = listener.accept()
    if key is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        connection = context.wrap_socket(connection, server_side=True)
    block = os.urandom(MIB)
    for _ in range(size_bytes // MIB):
        connection.sendall(block)
    connection.close()


class Storage:
    """The site and everything that reads it, until close()."""

    def __init__(self, directory: Path, size_bytes: int) -> None:
        from vmhaul_lab.images import DiskPlan
        from vmhaul_lab.loopdev import LoopDevice
        from vmhaul_lab.plan import DatastorePlan, LunPlan, SitePlan, VmPlan
        from vmhaul_lab.proxies import ProxyPlan
        from vmhaul_lab.site import LabSite

        self._stack = ExitStack()
        stores = (
            DatastorePlan(name=PLAIN),
            DatastorePlan(name=LUN, luns=(LunPlan(size_bytes=2 * size_bytes + (4 << 30)),)),
            DatastorePlan(name=NFS, kind="NFS41", served=True),
        )
        disk = DiskPlan(
            label="d",
            capacity_bytes=size_bytes,
            layout="empty",
            thin=False,
            eager=True,
            datastore=PLAIN,
        )
        vms = tuple(
            VmPlan(name=store.name, disks=(DiskPlan(**{**asdict(disk), "datastore": store.name}),))
            for store in stores
        )
        plan = SitePlan(vms=vms, datastores=stores, proxies=(ProxyPlan(name="proxy"),))
        self.site = self._stack.enter_context(LabSite(directory / "site", plan))
        self.proxy = self.site.proxy("proxy")
        for vm in vms:
            live = self.site.disk(vm.name)
            with self.site.open_live(live) as file:
                for _ in range(size_bytes // MIB):
                    file.write(os.urandom(MIB))
                os.fsync(file.fileno())
        endpoint = Endpoint(
            host=self.site.vcenter_host,
            port=self.site.vcenter_port,
            thumbprint_sha256=self.site.thumbprint_sha256,
        )
        login = Login(username=self.site.user, password=Secret(self.site.password))
        client = vsphere.connect(endpoint, login, clock=time.time)
        self._stack.callback(client.close)
        machine = Machine(sys_path=str(self.proxy.sys_path), dev_path=str(self.proxy.dev_path))
        self.access = Access(vsphere=client, options=ModeOptions(machine=machine))
        self.disks = {vm.name: self._frozen(vm.name) for vm in vms}
        self.hot_added = LoopDevice(self.site.disk(PLAIN).base_file, read_only=True)
        self._stack.callback(self.hot_added.close)

    def _frozen(self, name: str) -> DiskRef:
        client = self.access.vsphere
        vm = next(vm for vm in client.inventory().vms if vm.name == name)
        snapshot = client.create_snapshot(vm.moref, name="bench", description="", quiesce=False)
        disk = snapshot.disks[0]
        return DiskRef(
            vm_moref=vm.moref,
            vm_name=name,
            disk_key=disk.key,
            path=disk.path,
            capacity_bytes=disk.capacity_bytes,
            datastore=disk.datastore,
            snapshot_moref=snapshot.moref,
            storage=client.datastore(disk.datastore, vm.datacenter).storage,
        )

    def read(self, name: str, mode: TransportMode) -> float:
        reader = registry.open_reader(self.access, self.disks[name], mode)
        try:
            return read_whole(reader)
        finally:
            reader.close()

    def read_hot_added(self) -> float:
        size = self.disks[PLAIN].capacity_bytes
        reader = ExtentReader(
            [DirectFile(str(self.hot_added.path))], ExtentMap.whole(size), mode=TransportMode.HOTADD
        )
        try:
            return read_whole(reader)
        finally:
            reader.close()

    def lun(self) -> tuple[Path, int]:
        """The LUN's node, and where on it the disk begins (its blocks were asked for in one piece)."""
        reader = registry.open_reader(self.access, self.disks[LUN], TransportMode.DIRECT_SAN)
        try:
            assert isinstance(reader, ExtentReader)
            first = next(iter(reader._extents.runs(0, MIB)))  # noqa: SLF001
            assert first.device_offset is not None
            file = reader._files[first.device]  # noqa: SLF001
            assert isinstance(file, DirectFile)
            return Path(file.path), first.device_offset
        finally:
            reader.close()

    def close(self) -> None:
        self._stack.close()


def measure(directory: Path, size_mib: int, rounds: int) -> list[dict[str, Any]]:
    size = size_mib * MIB
    storage = Storage(directory, size)
    try:
        node, start = storage.lun()
        exported = storage.site.disk(NFS).base_file
        ways: dict[str, Callable[[], float]] = {
            "hotadd": storage.read_hot_added,
            "hotadd: dd": lambda: dd(storage.hot_added.path, size),
            "direct-san": lambda: storage.read(LUN, TransportMode.DIRECT_SAN),
            "direct-san: dd": lambda: dd(node, size, skip_bytes=start),
            "direct-nfs": lambda: storage.read(NFS, TransportMode.DIRECT_NFS),
            "direct-nfs: dd of the exported file": lambda: dd(exported, size),
            "nbd": lambda: storage.read(PLAIN, TransportMode.NBD),
            "nbd: bare connection": lambda: stream(size, directory, tls=False),
            "nbdssl": lambda: storage.read(PLAIN, TransportMode.NBDSSL),
            "nbdssl: bare connection": lambda: stream(size, directory, tls=True),
        }
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(rounds):
            for name, way in ways.items():
                best[name] = min(best[name], way())
        return [
            {"what": name, "wall_s": round(wall_s, 3), "mib_s": round(size_mib / wall_s)}
            for name, wall_s in best.items()
        ]
    finally:
        storage.close()


def rows(size_mib: int, rounds: int, directory: Path | None = None) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="modes-", dir=directory) as place:
        return measure(Path(place), size_mib, rounds)


def aims(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For `bench/results.json`."""
    rates = {row["what"]: row["mib_s"] for row in found}
    made: list[Aim] = []
    for what, rate in rates.items():
        mode, _, beside = what.partition(": ")
        if beside:
            made.append(at_least(f"{mode} reads / {beside}", rates[mode] / rate, NO_WORSE_SHARE))
    return [asdict(aim) for aim in made]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size-mib", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path)
    args = parser.parse_args()
    found = rows(args.size_mib, args.rounds, args.directory)
    print(json.dumps({"rows": found, "aims": aims(found)}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
