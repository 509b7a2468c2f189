"""Every transport mode at every kind of disk: full, increment and restore, compared bit by bit.

A site with one VM for each mode, and a second one with a snapshot of its user where the mode admits that. Each
mode has a job of its own that allows nothing else. Everything about vmhaul goes through its command line.
"""

import json
import os
import random
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from vmhaul_lab import operator
from vmhaul_lab.content import MIB
from vmhaul_lab.errors import LabError
from vmhaul_lab.images import Content, DiskPlan
from vmhaul_lab.plan import DatastorePlan, LunPlan, SitePlan, VmPlan
from vmhaul_lab.proxies import ProxyPlan
from vmhaul_lab.shell import Shell
from vmhaul_lab.site import LabSite
from vmhaul_lab.state import write_private

PROXY = "default"
PROXY_VM = "proxy-vm"
"""The VM in which it runs; the disk array knows it as a host by this name."""
_KINDS = ("thin", "thick", "eager")
_ONLY_STORAGE = ("--storage-snapshots", "--no-storage-failover")
_WRITES = 12
"""How often each guest writes between two backups."""
_WRITE_BYTES = 96 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ModePlan:
    """How one mode is put to the proof."""

    mode: str
    datastore: DatastorePlan
    with_snapshots: bool
    """It reads VMs that have snapshots of their users."""
    writes: tuple[str, ...]
    """Kinds of disks that it writes to."""
    variant: str = ""
    """Tells two plans of one mode apart."""

    @property
    def name(self) -> str:
        """Of the plan, its job and its VM."""
        return f"{self.mode}-{self.variant}" if self.variant else self.mode


STORAGE_SNAPSHOT = "storage-snapshot"
VMFS = DatastorePlan(name="vmfs-plain")
NFS3 = DatastorePlan(name="nfs-3", kind="NFS", served=True)
NFS41 = DatastorePlan(name="nfs-41", kind="NFS41", served=True)
SAN = DatastorePlan(name="vmfs-lun", luns=(LunPlan(size_bytes=4 << 30),))

MODES = (
    ModePlan(mode=STORAGE_SNAPSHOT, datastore=SAN, with_snapshots=True, writes=()),
    ModePlan(mode="direct-san", datastore=SAN, with_snapshots=True, writes=("eager",)),
    ModePlan(mode="direct-nfs", datastore=NFS3, with_snapshots=False, writes=_KINDS),
    # Debian 12's library is too slow to be used for writing NFS 4.
    ModePlan(mode="direct-nfs", variant="41", datastore=NFS41, with_snapshots=False, writes=()),
    ModePlan(mode="hotadd", datastore=VMFS, with_snapshots=True, writes=_KINDS),
    ModePlan(mode="nbdssl", datastore=VMFS, with_snapshots=True, writes=_KINDS),
    ModePlan(mode="nbd", datastore=VMFS, with_snapshots=True, writes=_KINDS),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One disk in one step."""

    mode: str
    disk: str
    """thin, thick or eager."""
    snapshots: bool
    step: str
    """full, increment, restore."""
    moved_bytes: int
    duration_s: float
    equal: bool
    remark: str = ""

    @property
    def rate_mb_s(self) -> float:
        """Megabytes of disk content for each second; 0 where nothing was timed."""
        return self.moved_bytes / self.duration_s / 1e6 if self.duration_s else 0.0


def vm_name(plan: ModePlan, *, snapshots: bool) -> str:
    """Of the VM that puts the mode to the proof."""
    return f"{plan.name}-snap" if snapshots else plan.name


def site_plan(modes: Sequence[ModePlan], disk_bytes: int) -> SitePlan:
    """The site: datastores, VMs, and the VM in which the proxy is."""
    vms = [
        VmPlan(
            name=vm_name(plan, snapshots=snapshots),
            disks=tuple(_disk(kind, plan.datastore.name, disk_bytes) for kind in _KINDS),
        )
        for plan in modes
        for snapshots in ((False, True) if plan.with_snapshots else (False,))
    ]
    stores = {plan.datastore.name: plan.datastore for plan in (*modes, MODES[-1])}
    return SitePlan(
        vms=tuple(vms),
        datastores=tuple(stores.values()),
        proxies=(ProxyPlan(name=PROXY_VM, disks=(_proxy_disk(),)),),
        array=any(plan.mode == STORAGE_SNAPSHOT for plan in modes),
    )


def _proxy_disk() -> DiskPlan:
    return DiskPlan(label="system", capacity_bytes=8 * MIB, layout="raw", datastore=VMFS.name)


def _disk(kind: str, datastore: str, capacity_bytes: int) -> DiskPlan:
    return DiskPlan(
        label=kind,
        capacity_bytes=capacity_bytes,
        layout="raw",
        contents=(Content(maker="texts", budget_bytes=capacity_bytes // 2),),
        thin=kind == "thin",
        eager=kind == "eager",
        datastore=datastore,
    )


class Matrix:
    """One performance over a site of its own in `directory`."""

    def __init__(
        self, directory: Path, *, modes: Sequence[ModePlan] = MODES, disk_mib: int = 32
    ) -> None:
        self._directory = directory
        self._modes = tuple(modes)
        self._data = directory / "data"
        self._shell = Shell(directory, self._data, timeout_s=600)
        self._site = LabSite(directory / "site", site_plan(self._modes, disk_mib * MIB))
        self._random = random.Random("matrix")
        self._pause = threading.Event()
        self.cells: list[Cell] = []

    def perform(self) -> list[Cell]:
        """Every cell. `LabError` when a step cannot be carried out at all."""
        self._directory.mkdir(parents=True)
        with self._site, self._server():
            self._register()
            for plan in self._modes:
                self._prove(plan)
        return self.cells

    # ---- setting up

    @contextmanager
    def _server(self) -> Iterator[None]:
        self._site.proxy(PROXY_VM).write_settings(_made(self._data / "proxies" / PROXY))
        log = self._directory / "up.log"
        process = self._shell.start("up", "--listen", "127.0.0.1:0", "--no-flower", log=log)
        try:
            self._wait("`vmhaul up`", lambda: self._is_online(process, log))
            yield
        finally:
            process.terminate()
            process.wait()

    def _is_online(self, process: "subprocess.Popen[bytes]", log: Path) -> bool:
        if process.poll() is not None:
            raise LabError(f"`vmhaul up` ended: {log.read_text(errors='replace')[-800:]}")
        try:
            proxies = self._shell.ask("proxy", "list")["items"]
        except LabError:
            return False
        return any(proxy["state"] == "online" for proxy in proxies)

    def _wait(self, what: str, ready: Callable[[], bool], seconds: float = 90) -> None:
        until = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > until:
                raise LabError(f"{what} did not get ready within {seconds:.0f} s")
            self._pause.wait(0.2)

    def _register(self) -> None:
        write_private(self._directory / "vcenter.password", self._site.password + "\n")
        write_private(self._directory / "repository.password", secrets.token_urlsafe(24) + "\n")
        self._shell.run(
            *("vcenter", "add", "lab", self._site.address, "--user", self._site.user),
            *("--thumbprint", self._site.thumbprint_sha256, "--password-stdin"),
            stdin="vcenter.password",
        )
        self._shell.run("proxy", "rescan", PROXY)
        self._shell.run(
            "repository", "add", "main", "repository", "--password-stdin", stdin="repository.password"
        )
        if self._site.plan.array:
            self._register_array()

    def _register_array(self) -> None:
        array = self._site.array
        write_private(self._directory / "array.token", array.api_token + "\n")
        self._shell.run(
            *("storage", "add", "array1", array.address, "--driver", "flasharray"),
            *("--identity", array.thumbprint, "--secret-stdin", "--proxy", f"{PROXY}={PROXY_VM}"),
            stdin="array.token",
        )

    # ---- one mode

    def _prove(self, plan: ModePlan) -> None:
        self._shell.heading(plan.name)
        for snapshots in (False, True) if plan.with_snapshots else (False,):
            vm = vm_name(plan, snapshots=snapshots)
            self._shell.run(
                *("job", "create", vm, "--vcenter", "lab", "--repository", "main", "--vm", vm),
                *("--mode", plan.mode, "--compression", "fast"),
                *(_ONLY_STORAGE if plan.mode == STORAGE_SNAPSHOT else ()),
            )
            if snapshots:
                # Change tracking is switched on before there is a snapshot, as it should be.
                self._shell.run("job", "run", vm)
                operator.take_snapshot(self._site, vm, "before the update")
                self._guest_works(vm)
            self._back_up(plan, vm, "full", snapshots=snapshots)
            self._guest_works(vm)
            self._back_up(plan, vm, "increment", snapshots=snapshots)
            self._restore(plan, vm, snapshots=snapshots)
        if plan.mode == STORAGE_SNAPSHOT and (left := self._site.array.snapshots()):
            raise LabError(f"the array still holds {', '.join(map(str, left))} after all backups ended")

    def _guest_works(self, vm: str) -> None:
        for disk in self._site.disks(vm):
            for _ in range(_WRITES):
                at = self._random.randrange(disk.capacity_bytes - _WRITE_BYTES)
                self._site.guest_write(disk, at, os.urandom(_WRITE_BYTES))

    def _back_up(self, plan: ModePlan, vm: str, step: str, *, snapshots: bool) -> None:
        before = {disk.key: self._site.live_sha256(disk) for disk in self._site.disks(vm)}
        self._shell.run("job", "run", vm, *(("--full",) if step == "full" else ()))
        tasks = self._tasks()
        numbers = range(1, len(tasks) + 1)
        with ThreadPoolExecutor(len(tasks)) as pool:
            restored = list(pool.map(lambda number: self._restored_sha256(vm, number), numbers))
        for number, task, digest in zip(numbers, tasks, restored, strict=True):
            remark = "" if task["mode"] == plan.mode else f"read by {task['mode']}"
            if task["read_mode"] != step:
                remark = f"{remark} {task['read_mode']}: {task['read_mode_reason']}".strip()
            equal = digest == before[int(task["disk_key"])]
            self._add(plan, number, snapshots, step, task, equal, remark)

    def _restored_sha256(self, vm: str, number: int) -> str:
        """Of a disk of the newest restore point, by way of a file. Several at a time: nothing is measured here."""
        target = self._directory / f"restored-{number}.raw"
        words = ["restore", "disk", f"{vm}@latest", "--disk", str(number), "--to", str(target)]
        words.append("--overwrite")
        self._shell.echo(*words, suffix=" &")
        session = self._shell.ask(*words)
        if session.get("result") != "success":
            raise LabError(
                f"the restore of disk {number} of {vm} ended: {session.get('result')}: {session.get('reason')}"
            )
        return self._digest(target)

    def _restore(self, plan: ModePlan, vm: str, *, snapshots: bool) -> None:
        if not plan.writes:
            return
        numbers = [number for number, kind in enumerate(_KINDS, start=1) if kind in plan.writes]
        name = f"{vm}-back"
        source = {n: self._site.live_sha256(self._site.disk(vm, n)) for n in numbers}
        words = [word for number in numbers for word in ("--disk", str(number))]
        self._shell.run(*("restore", "vm", f"{vm}@latest", "--name", name, "--mode", plan.mode, *words))
        for position, (number, task) in enumerate(zip(numbers, self._tasks(), strict=True), start=1):
            equal = self._site.live_sha256(self._site.disk(name, position)) == source[number]
            remark = "" if task["mode"] == plan.mode else f"written by {task['mode']}"
            self._add(plan, number, snapshots, "restore", task, equal, remark)

    def _tasks(self) -> list[dict[str, Any]]:
        session = self._shell.ask("session", "show", "latest")
        tasks = [task for vm in session["vms"] for task in vm["tasks"]]
        return sorted(tasks, key=lambda task: int(task["disk_key"]))

    def _digest(self, path: Path) -> str:
        from vmhaul_lab.verify import sha256

        return sha256(path)

    def _add(
        self,
        plan: ModePlan,
        number: int,
        snapshots: bool,
        step: str,
        task: dict[str, Any],
        equal: bool,
        remark: str,
    ) -> None:
        stats = task.get("stats") or {}
        moved = stats.get("stored_bytes" if step == "restore" else "read_bytes", 0)
        self.cells.append(
            Cell(
                mode=plan.name,
                disk=_KINDS[number - 1],
                snapshots=snapshots,
                step=step,
                moved_bytes=int(moved),
                duration_s=float(stats.get("duration_s") or 0),
                equal=equal,
                remark=remark,
            )
        )


def _made(directory: Path) -> Path:
    directory.mkdir(mode=0o700, parents=True)
    return directory


def table_of(cells: Sequence[Cell]) -> Table:
    """For people."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("mode", "disk", "user's snapshot"):
        table.add_column(title)
    for step in ("full", "increment", "restore"):
        table.add_column(f"{step}, MB/s", justify="right")
    table.add_column("SHA-256")
    table.add_column("remark")
    rows: dict[tuple[str, str, bool], dict[str, Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.mode, cell.disk, cell.snapshots), {})[cell.step] = cell
    for (mode, disk, snapshots), steps in rows.items():
        found = list(steps.values())
        rates = [
            f"{steps[step].rate_mb_s:.0f}" if step in steps else "-"
            for step in ("full", "increment", "restore")
        ]
        wrong = [cell.step for cell in found if not cell.equal]
        said = "; ".join(f"{cell.step}: {cell.remark}" for cell in found if cell.remark)
        table.add_row(
            mode,
            disk,
            "yes" if snapshots else "no",
            *rates,
            f"DIFFERS ({', '.join(wrong)})" if wrong else "equal",
            said,
        )
    return table


def run_matrix(directory: Path, *, only: Sequence[str], disk_mib: int, as_json: bool) -> int:
    """Perform it, print it, and remove the directory when all is well. 0, or 1 when something is not."""
    known = {plan.name: plan for plan in MODES}
    for mode in only:
        if mode not in known:
            raise LabError(f"mode {mode!r} is none of {', '.join(known)}")
    if directory.exists():
        raise LabError(f"{directory} is there already: remove it, or name another with --dir")
    modes = [known[mode] for mode in only] if only else list(MODES)
    cells = Matrix(directory, modes=modes, disk_mib=disk_mib).perform()
    good = all(cell.equal and not cell.remark for cell in cells)
    if as_json:
        rows = [
            {
                **{name: getattr(cell, name) for name in Cell.__slots__},
                "rate_mb_s": round(cell.rate_mb_s, 1),
            }
            for cell in cells
        ]
        print(json.dumps(rows, indent=1))
    else:
        Console().print(table_of(cells))
    if good:
        shutil.rmtree(directory)
    else:
        print(f"not all as it should be; files and logs are in {directory}")
    return 0 if good else 1
