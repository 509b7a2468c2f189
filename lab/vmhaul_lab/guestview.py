"""What the kernel of a proxy VM shows: a directory with `sys/` and `dev/` of its own.

A disk that the hypervisor attaches is a loop device over its file. Its attributes stand where Linux has those of
a SCSI disk, so that whoever reads sysfs and opens nodes below `dev/` cannot tell the difference. Three things
are not as in a kernel: attributes are plain files, so what the guest writes into `device/delete` or a host's
`scan` takes effect a moment later (see `poll`); there are no uevents; and everything is gone when the process
that holds the view ends.
"""

import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Self
from uuid import UUID

from vmhaul_lab.errors import LabError
from vmhaul_lab.loopdev import LoopDevice

POLL_S = 0.02
# IDE and CD-ROM have the first two host numbers in most VMs.
_FIRST_HOST = 2
_LUN_HOST = 32
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Appearance(StrEnum):
    """When the guest sees a disk that was attached."""

    AT_ONCE = "at-once"
    AFTER_SCAN = "after-scan"
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ScsiAddress:
    """Where a device is: host:channel:target:lun."""

    host: int
    channel: int = 0
    target: int = 0
    lun: int = 0

    def __str__(self) -> str:
        return f"{self.host}:{self.channel}:{self.target}:{self.lun}"


@dataclass(slots=True, kw_only=True)
class _Disk:
    backing: Path
    device: LoopDevice
    wwid: str
    address: ScsiAddress
    vendor: str
    model: str
    name: str = ""
    """`sdb` while the guest sees it."""
    hidden_for: Appearance = field(default=Appearance.AT_ONCE)


class GuestView:
    """One guest's devices. May be used by several threads; needs root. Close it, or use it in a `with` block."""

    def __init__(self, directory: Path, *, uuid: str, swapped: bool = False) -> None:
        """`uuid`: the VM's BIOS UUID as vCenter has it; `swapped`: the guest shows its first three groups in
        the other byte order, as many do. `directory` is made, and emptied when something is in it.
        """
        self.directory = directory
        self.sys_path = directory / "sys"
        self.dev_path = directory / "dev"
        self.appearance = Appearance.AT_ONCE
        self._lock = threading.RLock()
        self._disks: dict[ScsiAddress, _Disk] = {}
        self._hosts: dict[int, Path] = {}
        self._changes = threading.Condition(self._lock)
        shutil.rmtree(directory, ignore_errors=True)
        for path in (
            "sys/block",
            "sys/class/block",
            "sys/class/scsi_host",
            "sys/class/scsi_disk",
            "dev",
        ):
            (directory / path).mkdir(parents=True)
        dmi = self.sys_path / "class" / "dmi" / "id"
        dmi.mkdir(parents=True)
        shown = UUID(bytes=UUID(uuid).bytes_le) if swapped else UUID(uuid)
        (dmi / "product_uuid").write_text(f"{shown}\n")
        (dmi / "sys_vendor").write_text("VMware, Inc.\n")
        (dmi / "product_name").write_text("VMware Virtual Platform\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give all loop devices back and remove the tree. May be called twice."""
        with self._lock:
            for address in list(self._disks):
                self.remove_disk(address)
        shutil.rmtree(self.directory, ignore_errors=True)

    # ---- what the hypervisor and the storage network do

    def add_host(self, number: int | None = None, *, driver: str = "vmw_pvscsi") -> int:
        """A SCSI host (a controller of the VM, or a path to an array); its number, as Linux counts them."""
        with self._lock:
            if number is None:
                number = max(self._hosts, default=_FIRST_HOST - 1) + 1
            if number in self._hosts:
                return number
            place = Path("devices", "pci0000:00", f"0000:{number:02x}:00.0", f"host{number}")
            attributes = self.sys_path / place / "scsi_host" / f"host{number}"
            attributes.mkdir(parents=True)
            (attributes / "proc_name").write_text(f"{driver}\n")
            (attributes / "scan").write_text("")
            _link(self.sys_path / "class" / "scsi_host" / f"host{number}", attributes)
            self._hosts[number] = self.sys_path / place
            return number

    def remove_host(self, number: int) -> None:
        """Take a host away, with all disks on it."""
        with self._lock:
            for address in [address for address in self._disks if address.host == number]:
                self.remove_disk(address)
            place = self._hosts.pop(number, None)
            if place is not None:
                (self.sys_path / "class" / "scsi_host" / f"host{number}").unlink()
                shutil.rmtree(place)

    def add_disk(
        self,
        backing: Path,
        *,
        address: ScsiAddress,
        wwid: str = "",
        size_bytes: int = 0,
        read_only: bool = False,
        vendor: str = "VMware",
        model: str = "Virtual disk",
    ) -> LoopDevice:
        """Attach a file as a disk at an address whose host exists.

        `wwid`: "naa.…", "eui.…" or "t10.…"; empty: the disk shows no identity, as those of a VM without
        disk.EnableUUID. `LabError` when something is there already.
        """
        with self._lock:
            if address in self._disks:
                raise LabError(f"{self.directory.name} has a disk at {address} already")
            if address.host not in self._hosts:
                raise LabError(f"{self.directory.name} has no SCSI host {address.host}")
            device = LoopDevice(backing, size_bytes=size_bytes, read_only=read_only)
            disk = _Disk(
                backing=backing,
                device=device,
                wwid=wwid,
                address=address,
                vendor=vendor,
                model=model,
                hidden_for=self.appearance,
            )
            self._disks[address] = disk
            if self.appearance is Appearance.AT_ONCE:
                self._show(disk)
            self._changes.notify_all()
            return device

    def add_lun(self, backing: Path, *, wwid: str, read_only: bool = False, size_bytes: int = 0) -> str:
        """Let a LUN of an array appear on a host for such; its address in words, for `remove_lun`."""
        with self._lock:
            host = self.add_host(_LUN_HOST, driver="iscsi_tcp")
            taken = {address.lun for address in self._disks if address.host == host}
            lun = next(number for number in range(len(taken) + 1) if number not in taken)
            address = ScsiAddress(host=host, lun=lun)
            self.add_disk(
                backing,
                address=address,
                wwid=wwid,
                size_bytes=size_bytes,
                read_only=read_only,
                vendor="LIO-ORG",
                model="lab lun",
            )
            return str(address)

    def remove_disk(self, address: ScsiAddress) -> None:
        """Take a disk away, whether the guest was ready for it or not; nothing when there is none."""
        with self._lock:
            disk = self._disks.pop(address, None)
            if disk is not None:
                self._hide(disk)
                disk.device.close()
                self._changes.notify_all()

    def remove_lun(self, wwid: str) -> None:
        """Take all LUNs of that identity away."""
        with self._lock:
            for address in [disk.address for disk in self._disks.values() if disk.wwid == wwid]:
                self.remove_disk(address)

    def device_at(self, address: ScsiAddress) -> LoopDevice | None:
        """What is attached there, seen by the guest or not."""
        with self._lock:
            disk = self._disks.get(address)
            return None if disk is None else disk.device

    def listed(self) -> list[dict[str, str | int | bool]]:
        """Everything that is attached, for people and tests; `name` is empty while the guest does not see it."""
        with self._lock:
            return [
                {
                    "address": str(disk.address),
                    "name": disk.name,
                    "wwid": disk.wwid,
                    "backing": str(disk.backing),
                    "size_bytes": disk.device.size_bytes,
                    "read_only": disk.device.read_only,
                    "loop": disk.device.number,
                }
                for disk in sorted(self._disks.values(), key=lambda disk: disk.address)
            ]

    # ---- what the guest does

    def poll(self) -> None:
        """Take notice of what the guest wrote into `delete` and `scan`."""
        with self._lock:
            for disk in list(self._disks.values()):
                if disk.name and _written(self._place(disk.address) / "delete"):
                    self._hide(disk)
                    disk.hidden_for = Appearance.AFTER_SCAN
            for number in self._hosts:
                if _written(
                    self.sys_path / "class" / "scsi_host" / f"host{number}" / "scan", empty=True
                ):
                    self._scan(number)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Poll on a thread of its own for the length of a `with` block."""
        with polling(lambda: [self]):
            yield

    def _scan(self, host: int) -> None:
        for disk in self._disks.values():
            if disk.address.host == host and not disk.name and disk.hidden_for is not Appearance.NEVER:
                self._show(disk)
        self._changes.notify_all()

    # ---- the tree

    def _place(self, address: ScsiAddress) -> Path:
        target = f"target{address.host}:{address.channel}:{address.target}"
        return self._hosts[address.host] / target / str(address)

    def _show(self, disk: _Disk) -> None:
        disk.name = self._free_name()
        place = self._place(disk.address)
        block = place / "block" / disk.name
        block.mkdir(parents=True)
        device = disk.device
        major, minor = os.major(device.rdev), os.minor(device.rdev)
        files: dict[str, str | bytes] = {
            "vendor": f"{disk.vendor:<8}\n",
            "model": f"{disk.model:<16}\n",
            "rev": "2.0 \n",
            "type": "0\n",
            "state": "running\n",
            "delete": "",
            "rescan": "",
            f"block/{disk.name}/size": f"{device.size_bytes // 512}\n",
            f"block/{disk.name}/ro": f"{int(device.read_only)}\n",
            f"block/{disk.name}/dev": f"{major}:{minor}\n",
            f"block/{disk.name}/removable": "0\n",
            f"block/{disk.name}/queue/logical_block_size": "512\n",
            f"block/{disk.name}/queue/physical_block_size": "512\n",
            f"block/{disk.name}/queue/rotational": "0\n",
        }
        if device.sequence:
            files[f"block/{disk.name}/diskseq"] = f"{device.sequence}\n"
        if disk.wwid:
            files["wwid"] = f"{disk.wwid}\n"
            files["vpd_pg83"] = vpd_page_83(disk.wwid)
        for name, content in files.items():
            path = place / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        _link(block / "device", place)
        node = self.dev_path / disk.name
        os.mknod(node, stat.S_IFBLK | 0o600, device.rdev)
        # Last, so that what is listed is complete.
        _link(self.sys_path / "class" / "scsi_disk" / str(disk.address), place)
        _link(self.sys_path / "class" / "block" / disk.name, block)
        _link(self.sys_path / "block" / disk.name, block)

    def _hide(self, disk: _Disk) -> None:
        if not disk.name:
            return
        (self.sys_path / "block" / disk.name).unlink()
        (self.sys_path / "class" / "block" / disk.name).unlink()
        (self.sys_path / "class" / "scsi_disk" / str(disk.address)).unlink()
        (self.dev_path / disk.name).unlink()
        shutil.rmtree(self._place(disk.address).parent)
        disk.name = ""

    def _free_name(self) -> str:
        taken = {disk.name for disk in self._disks.values()}
        singles = (f"sd{letter}" for letter in _LETTERS)
        doubles = (f"sd{first}{second}" for first in _LETTERS for second in _LETTERS)
        return next(name for names in (singles, doubles) for name in names if name not in taken)


@contextmanager
def polling(views: Callable[[], list[GuestView]]) -> Iterator[None]:
    """Poll views on a thread for the length of a `with` block."""
    ended = threading.Event()

    def loop() -> None:
        while not ended.wait(POLL_S):
            for view in views():
                view.poll()

    thread = threading.Thread(target=loop, name="guest-views", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def vpd_page_83(wwid: str) -> bytes:
    """SCSI page 0x83 (device identification) with the one designator that `wwid` is the name of."""
    kind, _, value = wwid.partition(".")
    if kind in {"naa", "eui"}:
        code_set, designator, body = 1, {"naa": 3, "eui": 2}[kind], bytes.fromhex(value)
    elif kind == "t10":
        code_set, designator, body = 2, 1, value.encode()
    else:
        raise LabError(f"{wwid!r} is no identity of a disk: naa.…, eui.… or t10.…")
    descriptor = bytes([code_set, designator, 0, len(body)]) + body
    return bytes([0, 0x83]) + len(descriptor).to_bytes(2, "big") + descriptor


def naa_of_uuid(uuid: str) -> str:
    """The name under which a guest sees a virtual disk: "6000C29x-…" without dashes."""
    return "naa." + uuid.replace("-", "").lower()


def _link(link: Path, target: Path) -> None:
    link.symlink_to(os.path.relpath(target, link.parent))


def _written(path: Path, *, empty: bool = False) -> bool:
    """Whether the guest wrote something there; with `empty` it is taken back."""
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        return False
    if text and empty:
        path.write_text("")
    return bool(text)
