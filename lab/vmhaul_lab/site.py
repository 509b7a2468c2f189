"""A running simulated site: made from a plan, used by tests and the demo, cleaned up at the end."""

import json
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from vmhaul_lab import day, hardware, images, verify
from vmhaul_lab.control import ControlClient, LabDisk
from vmhaul_lab.errors import LabError
from vmhaul_lab.filer import Filer
from vmhaul_lab.hardware import HardwareClient
from vmhaul_lab.lablun import LabArray, LabLuns
from vmhaul_lab.plan import DATASTORES, STORAGE, USER, DatastorePlan, SitePlan, VmPlan, quick_vms
from vmhaul_lab.process import Child, labvc_binary
from vmhaul_lab.proxies import LabProxy, ProxyPlan
from vmhaul_lab.state import ProcessMark, SiteState, write_private
from vmhaul_lab.storage import SharedBlocks

# A disk above this gets a digest of its data in place of a SHA-256 over terabytes of zeros.
LARGEST_HASHED_BYTES = 64 << 30
_OPEN_ATTEMPTS = 50


class LabSite:
    """One simulated vCenter with hosts, datastores and VMs in a directory of its own.

    A context manager: entering builds the disks and starts the site, leaving stops it. The files
    stay; whoever made the directory removes it.
    """

    def __init__(
        self,
        directory: Path,
        plan: SitePlan,
        *,
        seed: int = 1,
        binary: Path | None = None,
        listen: str = "127.0.0.1:0",
        detached: bool = False,
    ) -> None:
        self.directory = directory.resolve()
        self.plan = plan
        self.user = USER
        self.password = secrets.token_urlsafe(15)
        self.vcenter_host = ""
        self.vcenter_port = 0
        self.thumbprint_sha1 = ""
        self.thumbprint_sha256 = ""
        self.hosts: list[dict[str, Any]] = []
        self._seed = seed
        self._binary = binary
        self._listen = listen
        self._detached = detached
        self._child: Child | None = None
        self._control: ControlClient | None = None
        self._hardware_child: Child | None = None
        self._hardware: HardwareClient | None = None
        self._storage: SharedBlocks | None = None
        self.nfs_host = ""
        """Address of the site's NFS server, where a datastore of the plan is served."""

    @classmethod
    def quick(
        cls,
        directory: Path,
        vms: Sequence[VmPlan] | int = 2,
        *,
        seed: int = 1,
        binary: Path | None = None,
        cbt_page_bytes: int = 0,
        users: Sequence[dict[str, Any]] = (),
        proxies: Sequence[ProxyPlan | str] = (),
        datastores: Sequence[DatastorePlan] = (),
        array: bool = False,
    ) -> Self:
        """A site for tests (not yet started): VMs with small disks of bare blocks, or those of `vms`.

        `proxies`: VMs that show attached disks as block devices (plans or names; needs root). `datastores`: in place
        of a plan's own two; disks without a datastore lie on the first. `array`: their LUNs belong to a disk array.
        """
        plans = quick_vms(vms) if isinstance(vms, int) else tuple(vms)
        plan = SitePlan(
            datastores=tuple(datastores) or DATASTORES,
            vms=plans,
            cbt_page_bytes=cbt_page_bytes,
            users=tuple(users),
            array=array,
            proxies=tuple(
                ProxyPlan(name=proxy) if isinstance(proxy, str) else proxy for proxy in proxies
            ),
        )
        return cls(directory, plan, seed=seed, binary=binary)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """`host:port` of the vCenter."""
        return f"{self.vcenter_host}:{self.vcenter_port}"

    @property
    def control(self) -> ControlClient:
        """The control interface; `LabError` while the site is not started."""
        if self._control is None:
            raise LabError(f"the site in {self.directory} is not started")
        return self._control

    @property
    def pid(self) -> int:
        """Process id of the site's server program."""
        if self._child is None:
            raise LabError(f"the site in {self.directory} is not started")
        return self._child.process.pid

    def start(self) -> None:
        """Build the disks and start the site."""
        self.directory.mkdir(parents=True, exist_ok=True)
        binary = self._binary or labvc_binary()
        description = self.directory / "site.json"
        if description.exists():
            raise LabError(f"{self.directory} holds a site already; name an empty directory")
        try:
            self._start(binary, description)
        except BaseException:
            self.stop()
            raise

    def _start(self, binary: Path, description: Path) -> None:
        if any(store.shares_blocks for store in self.plan.all_datastores()):
            self._storage = SharedBlocks(directory=self.directory / STORAGE).mount()
        made = self._build_images()
        for store in self.plan.all_datastores():
            store.folder(self.directory).mkdir(parents=True)
        self._start_hardware()
        site = self.plan.site_json(
            self.directory,
            made,
            self.password,
            self._listen,
            hardware="" if self._hardware is None else self._hardware.address,
            nfs_host=self.nfs_host,
        )
        write_private(description, json.dumps(site, indent=1))
        # Attached, the site ends with this process, however that ends.
        command = [binary, "-site", description, *(() if self._detached else ("-stdinexit",))]
        self._child = Child(command, self.directory / "labvc.log", detached=self._detached)
        ready = self._child.ready()
        host, _, port = ready["vcenter"].rpartition(":")
        self.vcenter_host, self.vcenter_port = host, int(port)
        self.thumbprint_sha1 = ready["thumbprint_sha1"]
        self.thumbprint_sha256 = ready["thumbprint_sha256"]
        self.hosts = ready.get("hosts") or []
        self._control = ControlClient(ready["control"])
        SiteState(
            directory=str(self.directory),
            vcenter=self.address,
            control=ready["control"],
            user=self.user,
            password=self.password,
            thumbprint_sha1=self.thumbprint_sha1,
            thumbprint_sha256=self.thumbprint_sha256,
            process=ProcessMark.of(self.pid),
            hardware=self._hardware_mark(),
            proxies={proxy.name: self.proxy(proxy.name).settings() for proxy in self.plan.proxies},
            nfs_host=self.nfs_host,
        ).write()
        for store in self.plan.all_datastores():
            if store.luns:
                self.luns(store.name).render()

    def _start_hardware(self) -> None:
        exports = [store.export(self.directory) for store in self.plan.all_datastores() if store.served]
        stores = [
            store.lun_store(self.directory, self.plan.proxies)
            for store in self.plan.all_datastores()
            if store.luns
        ]
        if not self.plan.proxies and not exports and not stores:
            return
        config = self.directory / "hardware.json"
        guests = [proxy.guest(self.directory) for proxy in self.plan.proxies]
        write_private(
            config,
            hardware.config_json(
                guests,
                exports,
                stores,
                self.plan.array_spec(self.directory),
                "" if self._storage is None else str(self._storage.directory),
            ),
        )
        words = [sys.executable, "-m", "vmhaul_lab.hardware", config]
        command = [*words, *(() if self._detached else ("--stdinexit",))]
        log = self.directory / "hardware.log"
        self._hardware_child = Child(command, log, detached=self._detached)
        ready = self._hardware_child.ready()
        self._hardware, self.nfs_host = HardwareClient(ready["address"]), ready["nfs_host"]

    def _hardware_mark(self) -> ProcessMark | None:
        child = self._hardware_child
        return None if child is None else ProcessMark.of(child.process.pid)

    @property
    def pids(self) -> list[int]:
        """Process ids of all programs of the site, in the order of their start."""
        return [child.process.pid for child in (self._hardware_child, self._child) if child is not None]

    @property
    def hardware(self) -> HardwareClient:
        """Orders to what is around vCenter; `LabError` when the plan has nothing of the kind."""
        if self._hardware is None:
            raise LabError(f"the site in {self.directory} has no hardware, or is not started")
        return self._hardware

    def proxy(self, name: str) -> LabProxy:
        """A proxy VM of the plan; `LabError` when there is none of that name or the site is not started."""
        for plan in self.plan.proxies:
            if plan.name == name:
                return LabProxy(
                    plan=plan, directory=plan.directory(self.directory), hardware=self.hardware
                )
        raise LabError(f"the site has no proxy VM {name!r}")

    def luns(self, datastore: str) -> LabLuns:
        """The LUNs of a datastore of the plan; `LabError` when it has none or the site is not started."""
        for store in self.plan.all_datastores():
            if store.name == datastore and store.luns:
                spec = store.lun_store(self.directory, self.plan.proxies)
                return LabLuns(spec=spec, hardware=self.hardware)
        raise LabError(f"the site has no datastore {datastore!r} on LUNs")

    def filer(self, datastore: str) -> Filer:
        """The snapshots of an NFS datastore of the plan; `LabError` when it has none."""
        for store in self.plan.all_datastores():
            if store.name == datastore and store.snapshots:
                return Filer(folder=store.folder(self.directory))
        raise LabError(f"the site has no datastore {datastore!r} with snapshots")

    @property
    def array(self) -> LabArray:
        """The disk array of a plan that has one; `LabError` while the site is not started."""
        return LabArray(hardware=self.hardware)

    def _build_images(self) -> dict[str, Path]:
        directory = self._images_directory()
        if all(disk.layout in {"raw", "empty"} for _, disk in self.plan.disks()):
            # Small and without file systems: made here and now, faster than another process starts.
            directory.mkdir()
            made: dict[str, Path] = {}
            for vm, disk in self.plan.disks():
                if disk.layout == "empty" and disk.thin:
                    continue
                key = f"{vm}/{disk.label}"
                made[key] = directory / f"{vm}-{disk.label}.raw"
                images.build(disk, made[key], f"{self._seed}/{key}")
            return made
        return images.build_all(self.plan.disks(), directory, self._seed)

    def _images_directory(self) -> Path:
        # Where most images go to: on another file system the site copies them.
        shared = {store.name for store in self.plan.all_datastores() if store.shares_blocks}
        first = self.plan.datastores[0].name
        disks = [disk.datastore or first for _, disk in self.plan.disks()]
        most = 2 * sum(name in shared for name in disks) > len(disks)
        return self.directory / (f"{STORAGE}/.images" if most else "images")

    def check(self) -> None:
        """`LabError` when the site's program has ended by itself."""
        if self._child is not None and self._child.process.poll() is not None:
            raise LabError(f"the site has ended; see {self.directory / 'labvc.log'}")

    def leave(self) -> None:
        """Forget a detached site: it goes on without us."""
        self._child = None
        self._hardware_child = None
        self._storage = None

    def stop(self) -> None:
        """Stop the site; its directory stays. May be called twice."""
        if self._child is not None:
            self._child.stop()
            self._child = None
            self._control = None
        if self._hardware_child is not None:
            self._hardware_child.stop()
            self._hardware_child = None
            self._hardware = None
        if self._storage is not None:
            self._storage.unmount()
            self._storage = None

    # ---- guests

    def disks(self, vm: str | None = None) -> list[LabDisk]:
        """The disks as they are now."""
        return self.control.disks(vm)

    def disk(self, vm: str, number: int = 1) -> LabDisk:
        """Disk `number` (from 1, in the order of keys) of a VM."""
        return sorted(self.disks(vm), key=lambda disk: disk.key)[number - 1]

    def guest_write(self, disk: LabDisk, offset_bytes: int, data: bytes) -> None:
        """Write into the live file of a disk, as its guest does, also while snapshots come and go."""
        if offset_bytes < 0 or offset_bytes + len(data) > disk.capacity_bytes:
            raise LabError(f"bytes {offset_bytes}+{len(data)} do not lie in {disk.vm} {disk.label}")
        with self.open_live(disk) as file:
            file.seek(offset_bytes)
            file.write(data)

    def guest_read(self, disk: LabDisk, offset_bytes: int, length_bytes: int) -> bytes:
        """Read from the live file of a disk, as its guest does."""
        with self.open_live(disk) as file:
            file.seek(offset_bytes)
            return file.read(length_bytes)

    def live_sha256(self, disk: LabDisk) -> str:
        """SHA-256 of what the guest has on the disk now."""
        return verify.sha256(self.live_file(disk))

    def live_file(self, disk: LabDisk) -> Path:
        """Where the live file of a disk lies now; a snapshot may give it another name at any time."""
        for now in self.disks(disk.vm):
            if now.vm_moref == disk.vm_moref and now.key == disk.key:
                return now.live_file
        raise LabError(f"{disk.vm} has no disk with key {disk.key} any more")

    def open_live(self, disk: LabDisk) -> BinaryIO:
        """The live file of a disk, open for reading and writing, whoever calls takes care of closing it.

        The live file keeps its identity when snapshots rename it, and its old name then belongs to a
        frozen file. So what was opened is compared with what is live after that.
        """
        for _ in range(_OPEN_ATTEMPTS):
            try:
                file = self.live_file(disk).open("r+b", buffering=0)
            except FileNotFoundError:
                continue
            try:
                live = self.live_file(disk).stat()
            except FileNotFoundError:
                file.close()
                continue
            if os.path.samestat(live, os.fstat(file.fileno())):
                return file
            file.close()
        raise LabError(f"the live file of {disk.vm} {disk.label} changes its name too often")

    def day_of_work(
        self, seed: str = "day", *, share: float = 0.03, trim: bool = False
    ) -> dict[str, day.DayReport]:
        """Let every guest work for a day; what was done, by 'vm/label'."""
        return {
            f"{disk.vm}/{disk.label}": day.work_on_disk(
                disk.live_file, f"{seed}/{disk.vm}/{disk.label}", share=share, trim=trim
            )
            for disk in self.disks()
        }


def digest(image: Path) -> str:
    """The digest by which disks are compared: SHA-256, for terabytes a digest of their data."""
    if image.stat().st_size > LARGEST_HASHED_BYTES:
        return verify.content_digest(image)
    return verify.sha256(image)
