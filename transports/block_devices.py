"""Block devices of this machine, as sysfs shows them: nothing here trusts the names that udev gives.

A **wwid** is what storage calls a disk, in vSphere's form: "naa.6000c29…", "eui.…", "t10.…", lower case. A
multipath device stands for its paths: it comes first wherever devices are looked for by wwid.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from transports.base import SECTOR_BYTES
from transports.errors import PermanentTransportError
from transports.machine import Machine
from transports.scsi_names import names_of_page_83, normalised

_MULTIPATH: Final = "mpath-"
_MULTIPATH_KINDS: Final = {"3": "naa.", "2": "eui.", "1": "t10."}
"""First character of a multipath name: the type of designator of page 0x83 that it was made from."""
_SCSI_ADDRESS_PARTS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ScsiAddress:
    """As Linux writes it, "2:0:1:0"."""

    host: int
    channel: int
    target: int
    lun: int

    def __str__(self) -> str:
        return f"{self.host}:{self.channel}:{self.target}:{self.lun}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDevice:
    """One whole disk (no partition)."""

    name: str
    """Of the kernel: "sdb", "dm-3"."""
    node: str
    """What to open: "/dev/sdb"."""
    size_bytes: int
    read_only: bool
    wwids: tuple[str, ...] = ()
    """Every name that the disk has; empty when it shows none."""
    address: ScsiAddress | None = None
    """None when it is no SCSI disk."""
    number: tuple[int, int] | None = None
    """Major and minor number of its node."""
    sequence: str = ""
    """Unlike every other device that had this name since the machine started; empty on old kernels."""
    is_multipath: bool = False
    paths: tuple[str, ...] = ()
    """Of a multipath device: names of the devices below it."""


def list_devices(machine: Machine) -> list[BlockDevice]:
    """All whole disks, by name. PermanentTransportError when sysfs cannot be read.

    Devices that come or go meanwhile are left out.
    """
    root = Path(machine.sys_path) / "block"
    try:
        names = sorted(entry.name for entry in root.iterdir())
    except OSError as error:
        raise PermanentTransportError(
            f"{root} cannot be read: {error.strerror}; this machine must show its block devices there"
        ) from error
    found = (_device(machine, root / name) for name in names)
    return [device for device in found if device is not None]


def with_wwid(devices: list[BlockDevice], wwid: str) -> list[BlockDevice]:
    """Devices that bear a name of storage, multipath first, and then none of its paths."""
    wanted = normalised(wwid)
    bearing = [device for device in devices if wanted in device.wwids]
    below = {path for device in bearing for path in device.paths}
    return sorted(
        (device for device in bearing if device.name not in below),
        key=lambda device: (not device.is_multipath, device.name),
    )


def scan(machine: Machine) -> int:
    """Have every SCSI host look for new disks; how many were asked. A host that refuses is passed over."""
    asked = 0
    for host in scsi_hosts(machine):
        try:
            (_hosts_path(machine) / f"host{host}" / "scan").write_text("- - -\n")
        except OSError:
            continue
        asked += 1
    return asked


def scsi_hosts(machine: Machine) -> dict[int, str]:
    """Numbers of the SCSI hosts, ascending, with the name of the driver ("vmw_pvscsi"; empty: not told)."""
    try:
        names = [entry.name for entry in _hosts_path(machine).iterdir()]
    except OSError:
        return {}
    numbers = sorted(int(name[4:]) for name in names if name.startswith("host") and name[4:].isdigit())
    return {number: _text(_hosts_path(machine) / f"host{number}" / "proc_name") for number in numbers}


def delete(machine: Machine, device: BlockDevice) -> None:
    """Have the kernel forget a SCSI disk; nothing when it is gone, or when its name has passed to another.

    PermanentTransportError when the kernel refuses. Nobody may have it open.
    """
    path = Path(machine.sys_path) / "block" / device.name
    now = _device(machine, path)
    if now is None or identity(now) != identity(device):
        return
    try:
        (path / "device/delete").write_text("1\n")
    except FileNotFoundError:
        return
    except OSError as error:
        if _device(machine, path) is None:
            return
        raise PermanentTransportError(
            f"the kernel does not let go of {device.node}: {error.strerror}; see what holds it open with lsblk"
        ) from error


def is_still(machine: Machine, device: BlockDevice) -> bool:
    """Whether the name stands for the same device as when it was listed."""
    now = _device(machine, Path(machine.sys_path) / "block" / device.name)
    return now is not None and identity(now) == identity(device)


def holders(machine: Machine, device: BlockDevice) -> tuple[str, ...]:
    """Devices that stand on this one or on a partition of it: "dm-0", "md127"."""
    root = Path(machine.sys_path) / "block" / device.name
    found = {
        name for path in (root, *root.glob(f"{device.name}*")) for name in _names(path / "holders")
    }
    return tuple(sorted(found))


def identity(device: BlockDevice) -> tuple[object, ...]:
    """What tells a device from another one that has its name later."""
    return device.name, device.number, device.sequence, device.address, device.wwids, device.size_bytes


def _hosts_path(machine: Machine) -> Path:
    return Path(machine.sys_path) / "class/scsi_host"


def _device(machine: Machine, path: Path) -> BlockDevice | None:
    try:
        size_bytes = int((path / "size").read_text()) * SECTOR_BYTES
    except (OSError, ValueError):
        return None
    uuid = _text(path / "dm/uuid")
    is_multipath = uuid.startswith(_MULTIPATH)
    return BlockDevice(
        name=path.name,
        node=str(Path(machine.dev_path) / path.name.replace("!", "/")),
        size_bytes=size_bytes,
        read_only=_text(path / "ro") not in ("", "0"),
        wwids=_multipath_wwids(uuid) if is_multipath else _wwids(path),
        address=_address(path),
        number=_number(_text(path / "dev")),
        sequence=_text(path / "diskseq"),
        is_multipath=is_multipath,
        paths=_names(path / "slaves") if is_multipath else (),
    )


def _wwids(path: Path) -> tuple[str, ...]:
    """Of the SCSI or NVMe layer's own attribute, and of page 0x83, which may name more."""
    names = [_text(path / "device/wwid"), _text(path / "wwid")]
    names += names_of_page_83(_bytes(path / "device/vpd_pg83"))
    return tuple(dict.fromkeys(normalised(name) for name in names if name))


def _multipath_wwids(uuid: str) -> tuple[str, ...]:
    name = uuid.removeprefix(_MULTIPATH)
    kind = _MULTIPATH_KINDS.get(name[:1])
    return () if kind is None else (normalised(kind + name[1:]),)


def _address(path: Path) -> ScsiAddress | None:
    try:
        target = (path / "device").resolve(strict=True).name
    except OSError:
        return None
    parts = target.split(":")
    if len(parts) != _SCSI_ADDRESS_PARTS or not all(part.isdigit() for part in parts):
        return None
    host, channel, scsi_target, lun = (int(part) for part in parts)
    return ScsiAddress(host=host, channel=channel, target=scsi_target, lun=lun)


def _number(text: str) -> tuple[int, int] | None:
    major, colon, minor = text.partition(":")
    if not colon or not major.isdigit() or not minor.isdigit():
        return None
    return int(major), int(minor)


def _names(path: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(entry.name for entry in path.iterdir()))
    except OSError:
        return ()


def _text(path: Path) -> str:
    """Without blanks at the ends; empty when there is no such attribute, or the driver refuses it."""
    return _bytes(path).decode(errors="replace").strip("\n\0 ")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
