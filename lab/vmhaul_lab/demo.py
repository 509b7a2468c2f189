"""The main job end to end: back up VMs, let their guests work, back up again, restore, compare.

Everything about vmhaul goes through its command line. What is true of a disk is found out on the
guests' side, before each backup, and compared with what comes back.
"""

import json
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from vmhaul_lab import plan
from vmhaul_lab.demo_report import Outcome, increment_sentence, print_outcomes
from vmhaul_lab.errors import LabError
from vmhaul_lab.guests import BusyGuests
from vmhaul_lab.loops import release_under
from vmhaul_lab.shell import Shell
from vmhaul_lab.site import LabSite, digest
from vmhaul_lab.state import ProcessMark, write_private

DEMO_FILE = "demo.json"
JOB = "nightly"
# Far above what a session takes on a slow machine; a demo that hangs must end by itself.
SESSION_TIMEOUT_S = {"small": 120.0, "normal": 240.0, "large": 3600.0}
# Hashing keeps a core busy.
_HASHES_AT_A_TIME = 2
# As many as the two proxies have slots for.
_RESTORES_AT_A_TIME = 4

Evidence = dict[tuple[str, int], str]
"""Digest by (VM, device key of the disk)."""


class DemoError(LabError):
    """What the demo was to show did not happen."""


class PortTakenError(DemoError):
    """`vmhaul up` found its port in use."""


def run_demo(directory: Path, *, size: str, keep: bool) -> int:
    """Perform the demo in `directory`; the last line printed is `demo: OK` or `demo: FAILED why`."""
    previous = signal.signal(signal.SIGTERM, _interrupt)
    demo = None
    try:
        _claim_directory(directory)
        demo = Demo(directory, size=size, keep=keep)
        demo.perform()
        demo.end(successful=True)
    except LabError as error:
        return _failed(demo, str(error))
    except KeyboardInterrupt:
        return _failed(demo, "interrupted")
    except Exception as error:  # noqa: BLE001 - whatever it is, nothing may be left running
        traceback.print_exc()
        return _failed(demo, repr(error))
    finally:
        signal.signal(signal.SIGTERM, previous)
    print("demo: OK", flush=True)
    return 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _failed(demo: "Demo | None", why: str) -> int:
    try:
        if demo is not None:
            demo.end(successful=False)
    except (LabError, OSError) as error:
        why += f"; and the end of it failed too: {error}"
    print("demo: FAILED " + " ".join(why.split()), flush=True)
    return 1


def _claim_directory(directory: Path) -> None:
    """Make the work directory; one that an earlier demo left is removed, anything else refused."""
    if directory.exists():
        if any(directory.iterdir()) and not (directory / DEMO_FILE).exists():
            raise DemoError(f"{directory} holds something else: name another directory with --dir")
        if any(mark.alive() for mark in _marks(directory)):
            raise DemoError(
                f"a demo runs in {directory}: end it with `vmhaul-lab demo-stop --dir {directory}`"
            )
        release_under(directory)
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    write_private(directory / DEMO_FILE, "[]")


def _marks(directory: Path) -> list[ProcessMark]:
    path = directory / DEMO_FILE
    return [ProcessMark(**item) for item in json.loads(path.read_text())] if path.exists() else []


def stop_demo(directory: Path) -> None:
    """End the processes of a demo that was kept, in reverse order, and remove its files."""
    if not (directory / DEMO_FILE).exists():
        raise DemoError(f"{directory} is not the directory of a demo")
    for mark in reversed(_marks(directory)):
        mark.end()
    release_under(directory)
    shutil.rmtree(directory)


@dataclass(frozen=True, slots=True, kw_only=True)
class _DiskOrder:
    """A disk to restore to a raw file, and what it has to be like."""

    words: tuple[str, ...]
    target: Path
    wanted: str
    outcome: Outcome

    def compare(self) -> None:
        self.outcome.compare(self.target, self.wanted)


class Demo:
    """One performance; `perform`, then `end`."""

    def __init__(self, directory: Path, *, size: str, keep: bool) -> None:
        self._directory = directory
        self._size = size
        self._keep = keep
        self._data = directory / "data"
        self._restored = directory / "restored"
        self._timeout_s = SESSION_TIMEOUT_S[size]
        self._shell = Shell(directory, self._data, timeout_s=self._timeout_s)
        self._site = LabSite(directory / "site", plan.sized(size), detached=keep)
        self._marks: list[ProcessMark] = []
        self._vms: list[str] = []
        self._outcomes: list[Outcome] = []
        self._flower = ""
        self._server: subprocess.Popen[bytes] | None = None
        self._pause = threading.Event()

    def perform(self) -> None:
        """All of it, in order."""
        shell = self._shell
        shell.heading(f"a simulated vSphere site ({self._size})")
        began = time.monotonic()
        self._site.start()
        for pid in self._site.pids:
            self._remember(pid)
        self._say_site(time.monotonic() - began)
        shell.heading("vmhaul, embedded")
        self._start_server()
        job_began = time.monotonic()
        self._register()
        self._create_job()

        shell.heading("first run: everything that is allocated")
        first = self._evidence()
        full = self._run_job(busy=True)
        shell.heading("a day of work in the guests")
        self._day()
        shell.heading("second run: what changed")
        second = self._evidence()
        increment = self._run_job(busy=False)
        shell.say(increment_sentence(full, increment))

        shell.heading("restore both restore points")
        self._restored.mkdir()
        self._restore_disks((("@2", first, full), ("@1", second, increment)))
        self._restore_vm("db01", "@2", "db01-before", first)
        self._restore_vm("web01", "@latest", "web01-restored", second)
        self._no_snapshot_left()

        shell.heading("result")
        print_outcomes(self._outcomes)
        shell.say(f"backups and restores took {time.monotonic() - job_began:.0f} s")
        bad = [outcome for outcome in self._outcomes if not outcome.good]
        if bad:
            raise DemoError("; ".join(outcome.complaint() for outcome in bad))

    def end(self, *, successful: bool) -> None:
        """Stop what runs and remove the files, or with --keep tell how to."""
        if successful and self._keep:
            self._site.leave()
            self._say_kept()
            return
        for mark in reversed(self._marks):
            mark.end()
        if self._server is not None:
            self._server.wait()
        self._site.stop()
        release_under(self._directory)
        if successful:
            shutil.rmtree(self._directory)
        else:
            print(f"files and logs are left in {self._directory}", flush=True)

    # ---- the steps

    def _remember(self, pid: int) -> None:
        self._marks.append(ProcessMark.of(pid))
        marks = json.dumps([asdict(mark) for mark in self._marks])
        write_private(self._directory / DEMO_FILE, marks)

    def _say_site(self, took_s: float) -> None:
        disks = self._site.disks()
        held = sum(disk.live_file.stat().st_blocks * 512 for disk in disks)
        capacity = sum(disk.capacity_bytes for disk in disks)
        vms = len({disk.vm for disk in disks})
        self._shell.say(
            f"vCenter https://{self._site.address} with {vms} VMs, {len(disks)} disks of "
            f"{capacity / 2**30:.1f} GiB that hold {held / 2**30:.2f} GiB; made in {took_s:.0f} s"
        )

    def _start_server(self) -> None:
        shell = self._shell
        shell.say(f"$ cd {self._directory}; export VMHAUL_DATA={self._data}")
        try:
            self._start_server_on(free_port(8470), free_port(5555))
        except PortTakenError:
            # Somebody was faster between our look and the server's start.
            self._start_server_on(free_port(0), free_port(0))

    def _start_server_on(self, port: int, flower_port: int) -> None:
        shell = self._shell
        listen, flower = f"127.0.0.1:{port}", str(flower_port)
        self._flower = f"http://127.0.0.1:{flower}"
        log = self._directory / "up.log"
        process = shell.start("up", "--listen", listen, "--flower-port", flower, log=log)
        self._server = process
        self._remember(process.pid)

        def ready() -> bool:
            if process.poll() is not None:
                said = log.read_text(errors="replace")[-1200:]
                if "already in use" in said:
                    raise PortTakenError(said)
                raise DemoError(f"`vmhaul up` ended with status {process.returncode}: {said}")
            return (self._data / "run" / "server.json").exists() and self._proxies_online(1)

        self._wait("`vmhaul up`", ready, 90)

    def _proxies_online(self, count: int) -> bool:
        try:
            proxies = self._shell.ask("proxy", "list")["items"]
        except LabError:
            return False
        return len([proxy for proxy in proxies if proxy["state"] == "online"]) >= count

    def _wait(self, what: str, ready: Callable[[], bool], seconds: float) -> None:
        until = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > until:
                raise DemoError(f"{what} did not get ready within {seconds:.0f} s")
            self._pause.wait(0.3)

    def _register(self) -> None:
        write_private(self._directory / "vcenter.password", self._site.password + "\n")
        write_private(self._directory / "repository.password", secrets.token_urlsafe(24) + "\n")
        shell = self._shell
        shell.run(
            *("vcenter", "add", "lab", self._site.address, "--user", self._site.user),
            *("--thumbprint", self._site.thumbprint_sha256, "--password-stdin"),
            stdin="vcenter.password",
        )
        shell.run(
            "repository", "add", "main", "repository", "--password-stdin", stdin="repository.password"
        )
        self._add_proxy_vm()

    def _add_proxy_vm(self) -> None:
        """A second proxy, which takes itself for the one that runs in a VM of the site."""
        shell = self._shell
        settings = self._data / "proxies" / plan.PROXY_VM
        settings.mkdir(parents=True)
        self._site.proxy(plan.PROXY_VM).write_settings(settings)
        shell.say(f"{plan.PROXY_VM}/proxy.toml names the devices of the site's VM of that name")
        shell.run("proxy", "add", plan.PROXY_VM, "--local", "--slots", "2")
        self._wait("the second proxy", lambda: self._proxies_online(2), 60)
        self._wait("what the second proxy reaches", self._looked_around, 60)
        shell.run("proxy", "list")
        shell.run("proxy", "show", plan.PROXY_VM)

    def _looked_around(self) -> bool:
        """Whether the server knows which VM the second proxy is, and that it reaches the NFS datastore."""
        found = self._shell.ask("proxy", "show", plan.PROXY_VM)["discovery"]
        return bool(found["vms"]) and any(store["readable"] for store in found["datastores"])

    def _create_job(self) -> None:
        self._shell.run(
            *("job", "create", JOB, "--vcenter", "lab", "--repository", "main", "--all"),
            *("--exclude-vm", "scratch*", "--exclude-vm", plan.PROXY_VM),
            *("--keep", "14", "--compression", "fast"),
        )
        self._shell.run("job", "plan", JOB)

    def _evidence(self) -> Evidence:
        """Digests of all live disks. Nothing writes to them until the next snapshot is made."""
        disks = self._site.disks()
        with ThreadPoolExecutor(_HASHES_AT_A_TIME) as pool:
            digests = list(pool.map(digest, (disk.live_file for disk in disks)))
        self._shell.say(f"SHA-256 of {len(disks)} live disks taken")
        return {(disk.vm, disk.key): value for disk, value in zip(disks, digests, strict=True)}

    def _run_job(self, *, busy: bool) -> dict[str, Any]:
        if busy:
            # Guests go on writing while they are backed up; the restore point must not show it.
            with BusyGuests(self._site.control, seed="busy") as guests:
                self._shell.run("job", "run", JOB)
            self._shell.say(guests.sentence())
        else:
            self._shell.run("job", "run", JOB)
        session: dict[str, Any] = self._shell.ask("session", "show", "latest")
        self._vms = [vm["name"] for vm in session["vms"]]
        self._shell.run("restore-point", "list", "--job", JOB, "--limit", str(len(self._vms)))
        return session

    def _day(self) -> None:
        reports = self._site.day_of_work()
        total: dict[str, int] = {}
        for report in reports.values():
            for what, count in asdict(report).items():
                total[what] = total.get(what, 0) + count
        self._shell.say(
            f"files: {total['created']} created, {total['appended']} appended, {total['edited']} edited, "
            f"{total['renamed']} renamed, {total['deleted']} deleted; {total['rows_updated']} database rows "
            f"updated; {total['written_bytes'] / 2**20:.0f} MiB written by the guests"
        )

    def _restore_disks(self, points: Sequence[tuple[str, Evidence, dict[str, Any]]]) -> None:
        """Every disk of every VM of both restore points, to raw files. The first disk of each point is
        watched, the others are restored several at a time.
        """
        orders: list[_DiskOrder] = []
        for point, evidence, session in points:
            first = len(orders)
            for vm in session["vms"]:
                for number, task in enumerate(_by_key(vm["tasks"]), start=1):
                    target = f"restored/{vm['name']}{point}-disk{number}.raw"
                    words = (
                        "restore",
                        "disk",
                        f"{vm['name']}{point}",
                        "--disk",
                        str(number),
                        "--to",
                        target,
                    )
                    order = _DiskOrder(
                        words=words,
                        target=self._directory / target,
                        wanted=evidence[vm["name"], int(task["disk_key"])],
                        outcome=Outcome.of_task(session, vm["name"], task),
                    )
                    orders.append(order)
            self._shell.run(*orders[first].words)
            for order in orders[first + 1 :]:
                self._shell.echo(*order.words, suffix=" &")
            with ThreadPoolExecutor(_RESTORES_AT_A_TIME) as pool:
                list(pool.map(self._restore_disk, orders[first + 1 :]))
            orders[first].compare()
            equal = sum(order.outcome.equal for order in orders[first:])
            self._shell.say(
                f"{equal} of {len(orders) - first} disks restored from {point} have the SHA-256 of their source"
            )
        self._outcomes += [order.outcome for order in orders]

    def _restore_disk(self, order: "_DiskOrder") -> None:
        """Restore one disk unseen, wait for its end and compare it."""
        session = self._shell.ask(*order.words)
        if session.get("result") != "success":
            raise DemoError(
                f"the restore to {order.target.name} ended: {session.get('result')}: {session.get('reason')}"
            )
        order.compare()

    def _restore_vm(self, vm: str, point: str, name: str, evidence: Evidence) -> None:
        if vm not in self._vms:
            raise DemoError(f"VM {vm} is not among those that were backed up")
        self._shell.run("restore", "vm", f"{vm}{point}", "--name", name)
        session = self._shell.ask("session", "show", "latest")
        tasks = [task for item in session["vms"] for task in _by_key(item["tasks"])]
        disks = sorted(self._site.disks(name), key=lambda disk: disk.key)
        if len(disks) != len(tasks) or not disks:
            raise DemoError(f"VM {name} came back with {len(disks)} disks of {len(tasks)}")
        outcomes = [Outcome.of_task(session, name, task) for task in tasks]
        wanted = [evidence[vm, int(task["disk_key"])] for task in tasks]
        with ThreadPoolExecutor(_HASHES_AT_A_TIME) as pool:
            list(pool.map(Outcome.compare, outcomes, [disk.live_file for disk in disks], wanted))
        self._outcomes += outcomes

    def _no_snapshot_left(self) -> None:
        left = [f"{disk.vm}: {snap.name}" for disk in self._site.disks() for snap in disk.snapshots]
        if left:
            raise DemoError(f"snapshots are left: {', '.join(left)}")
        self._shell.say("no snapshot is left on any VM")

    def _say_kept(self) -> None:
        url = json.loads((self._data / "run" / "server.json").read_text())["url"]
        login = self._shell.ask("console")["path"]
        print(
            f"\nEverything goes on running:\n"
            f"  console   {url}{login}  (once, within ten minutes; then: vmhaul console)\n"
            f"  Flower    {self._flower}\n"
            f"  vCenter   https://{self._site.address}  user {self._site.user}  password {self._site.password}\n"
            f"  CLI       export VMHAUL_DATA={self._data}\n"
            f"  site      vmhaul-lab status --dir {self._directory / 'site'}\n"
            f"  stop      vmhaul-lab demo-stop --dir {self._directory}",
            flush=True,
        )


def free_port(wanted: int) -> int:
    """`wanted` when nothing listens there on loopback, else a port that is free now."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise DemoError("no port of 127.0.0.1 is free")


def _by_key(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(tasks, key=lambda task: int(task["disk_key"]))
