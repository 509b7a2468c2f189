"""A VMFS volume on the LUNs that it lies on: files by path, and where their bytes are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from transports.direct_file import DirectFile
from transports.direct_san import library
from transports.direct_san.blocks import file_runs
from transports.direct_san.errors import DamagedMetadataError, NotForSanError
from transports.direct_san.lun import PartitionView
from transports.direct_san.runs import Kind, MapError, RunMap, compose, make_map

LVM_HEADER_OFFSET: Final = 1 << 20
LVM_MAGIC: Final = (0xC001D00D).to_bytes(4, "little")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One partition that a volume lies on."""

    file: DirectFile
    offset: int
    length: int


class File:
    """One file of a volume."""

    def __init__(self, volume: Volume, path: str, descriptor: Any) -> None:
        self._volume = volume
        self.path = path
        self._descriptor = descriptor
        with library.understood(f"the file {path}"):
            if not descriptor.is_file() and not descriptor.is_rdm():
                raise DamagedMetadataError(f"{path} is no file")
            self.size_bytes = int(descriptor.size)
        self._runs: RunMap | None = None

    def runs(self) -> RunMap:
        """A map of the file: devices are numbers of the volume's parts, targets offsets into their LUNs."""
        if self._runs is None:
            self._runs = self._volume.on_luns(file_runs(self._volume.fs, self._descriptor))
        return self._runs

    def read(self, offset: int, length: int) -> bytes:
        """The whole range. DamagedMetadataError when the file is shorter."""
        runs = self.runs()
        if offset < 0 or length < 0 or offset + length > runs.size:
            raise DamagedMetadataError(
                f"{self.path} has {runs.size} bytes, and [{offset}, +{length}) of it is pointed to"
            )
        return self._volume.read(runs, offset, length)


class Volume:
    """One look at the metadata: what changes on the LUNs after it is not seen. Does not own the files."""

    def __init__(self, parts: Sequence[Part]) -> None:
        """DamagedMetadataError when the parts hold no whole volume."""
        self.parts = tuple(parts)
        views = [PartitionView(part.file, part.offset, part.length) for part in parts]
        self._luns = [PartitionView(part.file, 0, part.file.size_bytes) for part in parts]
        logical = library.open_logical_volume(list(views))
        with library.understood("the volume's extents"):
            numbers = {id(view): number for number, view in enumerate(views)}
            rows = [
                (int(start), int(at), int(length), numbers[id(device.fh)])
                for start, at, length, device in logical.dataruns()
            ]
        self._map = _volume_map(rows, self.parts)
        with library.understood("the volume"):
            stream = logical.open()
        self.fs = library.open_file_system(stream)
        with library.understood("the file system's header"):
            self.uuid = str(self.fs.uuid)
            self.label = str(self.fs.label)

    def map_rows(self) -> list[tuple[int, int, int, int]]:
        """(offset in the volume, length, number of the part, offset in its LUN) of each piece."""
        return [(start, length, part, target) for start, length, _, part, target in self._map.rows()]

    def on_luns(self, in_volume: RunMap) -> RunMap:
        """From offsets into the volume to offsets into its LUNs. DamagedMetadataError."""
        try:
            found = compose(in_volume, self._map)
        except MapError as error:
            raise DamagedMetadataError(f"a file lies outside of the volume: {error}") from error
        if found.holds(Kind.ABSENT):
            raise DamagedMetadataError("a file lies where the volume has no storage")
        return found

    def read(self, runs: RunMap, offset: int, length: int) -> bytes:
        """A small range of a file by its map."""
        parts = []
        index = int(runs.starts.searchsorted(offset, side="right")) - 1
        end = offset + length
        while offset < end:
            stop = min(int(runs.ends[index]), end)
            if runs.kinds[index] == Kind.DATA:
                at = int(runs.targets[index]) + offset - int(runs.starts[index])
                parts.append(self._luns[int(runs.devices[index])].exactly(at, stop - offset))
            else:
                parts.append(bytes(stop - offset))
            offset = stop
            index += 1
        return b"".join(parts)

    def file(self, path: str) -> File:
        """The file at a path below the root, "dir/x.vmdk". NotForSanError when there is none: it may have been
        moved to another datastore.
        """
        from dissect.vmfs.exception import FileNotFoundError as NotFound

        node = self._with_shift(self.fs.root)
        with library.understood(f"the directory of {path}"):
            for name in path.split("/"):
                if not node.is_dir():
                    raise NotForSanError(f"is not at {path}: there is no such directory on the volume")
                try:
                    node = node.get(name).file_descriptor
                except NotFound:
                    node = _listed(node, name, path)
                if node.is_symlink():
                    raise NotForSanError(f"is not at {path}: {name} is a link")
                node = self._with_shift(node)
        return File(self, path, node)

    def _with_shift(self, node: Any) -> Any:
        """Files of older volumes, also after an upgrade to VMFS 5, do not say by how much an offset is shifted to
        become a block's number: there it follows from the size of the file's blocks.
        """
        with library.understood("a file descriptor"):
            metadata = node.metadata
            if self.fs.is_vmfs5 and not metadata.blockOffsetShift:
                metadata.blockOffsetShift = int(metadata.blockSize).bit_length() - 1
        return node


def _listed(directory: Any, name: str, path: str) -> Any:
    """The hash of a name says where its entry is; where it does not, the list of all entries does."""
    for entry in directory.iterdir():
        if entry.name == name:
            return entry.file_descriptor
    raise NotForSanError(f"is not at {path}: the volume has no {name} there")


def _volume_map(rows: Sequence[tuple[int, int, int, int]], parts: Sequence[Part]) -> RunMap:
    """From the volume manager's physical extents. Offsets of theirs count from the partition."""
    if not rows:
        raise DamagedMetadataError("the volume has no physical extents")
    for _, at, length, number in rows:
        if at + length > parts[number].length:
            raise DamagedMetadataError(
                f"the volume's extents reach beyond the end of {parts[number].file.path}"
            )
    size = rows[-1][0] + rows[-1][2]
    try:
        return make_map(
            size,
            [start for start, _, _, _ in rows],
            [Kind.DATA for _ in rows],
            [at + parts[number].offset for _, at, _, number in rows],
            [number for _, _, _, number in rows],
        )
    except MapError as error:
        raise DamagedMetadataError(f"the volume's extents make no sense: {error}") from error
