"""The LUNs of this machine that a datastore lies on: found by name, or by what is inside; checked before use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from transports import block_devices
from transports.base import DatastoreRef, LunExtent
from transports.block_devices import BlockDevice
from transports.direct_file import DirectFile
from transports.direct_san import library
from transports.direct_san.errors import DamagedMetadataError
from transports.direct_san.lun import PartitionView
from transports.direct_san.partitions import Partition, read_partitions
from transports.direct_san.volume import LVM_HEADER_OFFSET, LVM_MAGIC, Part, Volume
from transports.errors import TransportError, TransportUnavailableError
from transports.machine import Machine

Wait = Callable[[float], None]
_SCAN_STEP_S: Final = 0.5


class OpenDatastore:
    """A datastore's LUNs, open. Closing closes the files."""

    def __init__(self, parts: tuple[Part, ...], devices: tuple[BlockDevice, ...]) -> None:
        self.parts = parts
        self.devices = devices

    @property
    def files(self) -> list[DirectFile]:
        return [part.file for part in self.parts]

    def look(self, datastore: DatastoreRef) -> Volume:
        """Read the metadata anew. DamagedMetadataError; TransportUnavailableError for another volume."""
        volume = Volume(self.parts)
        if datastore.vmfs_uuid and volume.uuid != datastore.vmfs_uuid.lower():
            raise TransportUnavailableError(
                f"{', '.join(device.node for device in self.devices)} holds the VMFS volume {volume.uuid}, "
                f"not {datastore.vmfs_uuid} of datastore {datastore.name}; rescan, then look at the zoning"
            )
        return volume

    def close(self) -> None:
        for file in self.files:
            file.close()


def open_datastore(
    machine: Machine, datastore: DatastoreRef, *, write: bool, wait: Wait, patience_s: float
) -> OpenDatastore:
    """Open every LUN that the datastore lies on. TransportUnavailableError with the reason.

    A LUN that is not there makes the machine scan for new ones and be patient.
    """
    if datastore.extents:
        devices = [_named(machine, datastore, extent, wait, patience_s) for extent in datastore.extents]
        with ExitStack() as opened:
            parts = tuple(
                _part(_open(device, opened, write=write), device, extent, datastore)
                for device, extent in zip(devices, datastore.extents, strict=True)
            )
            opened.pop_all()
        return OpenDatastore(parts, tuple(devices))
    return _by_content(machine, datastore, write=write, wait=wait, patience_s=patience_s)


def _open(device: BlockDevice, opened: ExitStack, *, write: bool) -> DirectFile:
    if write and device.read_only:
        raise TransportUnavailableError(
            f"{device.node} is read-only on this machine; restore over SAN needs it writable"
        )
    file = DirectFile(device.node, write=write)
    opened.callback(file.close)
    return file


# ---- by name --------------------------------------------------------------------------------------


def _named(
    machine: Machine, datastore: DatastoreRef, extent: LunExtent, wait: Wait, patience_s: float
) -> BlockDevice:
    for devices in _looks(machine, wait, patience_s):
        found = block_devices.with_wwid(devices, extent.lun)
        if found:
            return found[0]
    raise TransportUnavailableError(
        f"this machine does not see LUN {extent.lun} of datastore {datastore.name}; zone and map it to the "
        "proxy (never initialise it), then rescan"
    )


def _looks(machine: Machine, wait: Wait, patience_s: float) -> Iterator[list[BlockDevice]]:
    """The machine's devices: now, and after a scan until patience ends."""
    yield block_devices.list_devices(machine)
    if not block_devices.scan(machine):
        return
    waited_s = 0.0
    while waited_s < patience_s:
        wait(_SCAN_STEP_S)
        waited_s += _SCAN_STEP_S
        yield block_devices.list_devices(machine)


def _part(file: DirectFile, device: BlockDevice, extent: LunExtent, datastore: DatastoreRef) -> Part:
    """The partition that vSphere names, after a look at what it is."""
    where = f"{device.node} ({extent.lun}) of datastore {datastore.name}"
    view = PartitionView(file, 0, file.size_bytes)
    if extent.partition == 0:
        part = Part(file=file, offset=0, length=file.size_bytes)
    else:
        found = _partition(view, extent.partition, where)
        part = Part(file=file, offset=found.offset, length=found.length)
    if _magic(view, part) != LVM_MAGIC:
        raise TransportUnavailableError(
            f"{where} has no VMFS on partition {extent.partition}; if another system initialised it, stop and "
            "look at it in vSphere"
        )
    return part


def _partition(view: PartitionView, number: int, where: str) -> Partition:
    try:
        partitions = {found.number: found for found in read_partitions(view.exactly, view.length)}
    except DamagedMetadataError as error:
        raise TransportUnavailableError(f"{where}: {error}; look at it in vSphere") from error
    partition = partitions.get(number)
    if partition is None or not partition.is_vmfs:
        raise TransportUnavailableError(
            f"{where} has no VMFS partition {number}; if another system initialised it, stop and look at it in "
            "vSphere"
        )
    return partition


def _magic(view: PartitionView, part: Part) -> bytes:
    if part.length < LVM_HEADER_OFFSET + 4096:
        return b""
    return view.exactly(part.offset + LVM_HEADER_OFFSET, len(LVM_MAGIC))


# ---- by what is inside ----------------------------------------------------------------------------


def _by_content(
    machine: Machine, datastore: DatastoreRef, *, write: bool, wait: Wait, patience_s: float
) -> OpenDatastore:
    """Look into every disk. For clones of LUNs, whose names vSphere does not know."""
    if not datastore.vmfs_uuid:
        raise TransportUnavailableError(
            f"vSphere names neither LUNs nor a VMFS uuid of datastore {datastore.name}; direct SAN cannot find it"
        )
    for devices in _looks(machine, wait, patience_s):
        found = _matching(devices, datastore)
        if len(found) > 1:
            names = "; ".join(", ".join(device.node for device, _ in group) for group in found)
            raise TransportUnavailableError(
                f"this machine sees {len(found)} copies of datastore {datastore.name} ({names}) and cannot tell "
                "which is meant"
            )
        if found:
            (group,) = found
            with ExitStack() as opened:
                parts = tuple(
                    Part(
                        file=_open(device, opened, write=write),
                        offset=partition.offset,
                        length=partition.length,
                    )
                    for device, partition in group
                )
                opened.pop_all()
            return OpenDatastore(parts, tuple(device for device, _ in group))
    raise TransportUnavailableError(
        f"no disk of this machine holds the VMFS volume {datastore.vmfs_uuid} of datastore {datastore.name}; zone "
        "and map its LUN to the proxy (never initialise it), then rescan"
    )


Group = tuple[tuple[BlockDevice, Partition], ...]


def _matching(devices: list[BlockDevice], datastore: DatastoreRef) -> list[Group]:
    """Sets of partitions that make up the volume: one, or more where copies are visible too."""
    members: dict[tuple[object, ...], list[tuple[BlockDevice, Partition, Any]]] = {}
    for device in _without_paths(devices):
        for partition, header in _headers(device):
            volume = header.volumes[0].volMeta.lvID
            members.setdefault((bytes(volume.uuid.dumps()), int(volume.snapID)), []).append(
                (device, partition, header)
            )
    found: list[Group] = []
    for group in members.values():
        for candidate in _combinations(group):
            with ExitStack() as opened:
                try:
                    parts = [
                        Part(
                            file=_open(device, opened, write=False),
                            offset=partition.offset,
                            length=partition.length,
                        )
                        for device, partition in candidate
                    ]
                    if Volume(parts).uuid == datastore.vmfs_uuid.lower():
                        found.append(candidate)
                except (DamagedMetadataError, TransportError):
                    continue
    return found


def _combinations(group: list[tuple[BlockDevice, Partition, Any]]) -> list[Group]:
    """Members of one logical volume. Two that claim to be the same member are copies of each other: then each
    is tried alone, as for a volume of several LUNs nobody can say which copies belong together.
    """
    if len({str(header.uuid) for _, _, header in group}) == len(group):
        return [tuple((device, partition) for device, partition, _ in group)]
    return [((device, partition),) for device, partition, _ in group]


def _without_paths(devices: list[BlockDevice]) -> list[BlockDevice]:
    """Each LUN once: multipath devices instead of their paths, and one of several bare paths. What storage gave
    no name (loop devices, floppies) is no LUN.
    """
    below = {path for device in devices for path in device.paths}
    seen: set[str] = set()
    kept = []
    for device in devices:
        if not device.wwids or device.name in below or seen.intersection(device.wwids):
            continue
        seen.update(device.wwids)
        kept.append(device)
    return kept


def _headers(device: BlockDevice) -> Iterator[tuple[Partition, Any]]:
    """Partitions of a disk with a volume manager's header, and that header. A disk that cannot be read has none."""
    from dissect.vmfs.lvm import Device

    with _readable(device) as view:
        if view is None:
            return
        try:
            partitions = [one for one in read_partitions(view.exactly, view.length) if one.is_vmfs]
        except DamagedMetadataError:
            return
        for partition in partitions:
            part = Part(file=view.file, offset=partition.offset, length=partition.length)
            try:
                if _magic(view, part) == LVM_MAGIC:
                    with library.understood("the volume manager's header"):
                        header = Device(PartitionView(view.file, part.offset, part.length))
                        if header.volumes:
                            yield partition, header
            except (DamagedMetadataError, TransportError):
                continue


@contextmanager
def _readable(device: BlockDevice) -> Iterator[PartitionView | None]:
    if device.size_bytes < LVM_HEADER_OFFSET:
        yield None
        return
    try:
        file = DirectFile(device.node)
    except TransportError:
        yield None
        return
    try:
        yield PartitionView(file, 0, file.size_bytes)
    finally:
        file.close()
