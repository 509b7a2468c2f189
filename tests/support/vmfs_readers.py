"""Two independent readers of VMFS: the library dissect.vmfs and the programs of vmfs-tools / vmfs6-tools."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

from dissect.vmfs import lvm, vmfs
from vmhaul_lab.loops import loop_device
from vmhaul_lab.vmfs import Lun, Partitioning
from vmhaul_lab.volumes import Volume

MIB = 1 << 20


class Part:
    """A LUN's partition as a file object."""

    def __init__(self, lun: Lun) -> None:
        self._file = lun.image.open("rb")
        self._start = 0 if lun.partitioning is Partitioning.NONE else MIB

    def seek(self, offset: int) -> int:
        return self._file.seek(self._start + offset)

    def read(self, length: int = -1) -> bytes:
        return self._file.read(length)

    def tell(self) -> int:
        return self._file.tell() - self._start

    def close(self) -> None:
        self._file.close()


class DissectReader:
    """A volume as dissect.vmfs understands it."""

    def __init__(self, luns: Sequence[Lun]) -> None:
        self._parts = [Part(lun) for lun in luns]
        volumes = lvm.LVM(cast("list[BinaryIO]", self._parts)).volumes
        assert len(volumes) == 1
        self.volume = volumes[0]
        self.fs = vmfs.VMFS(cast("BinaryIO", self.volume.open()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for part in self._parts:
            part.close()

    def names(self) -> list[str]:
        """Paths of all files and directories (these with a slash at the end), without the system's."""
        return sorted(self._walk(self.fs.root, ""))

    def _walk(self, folder: Any, path: str) -> Iterator[str]:
        for entry in folder.iterdir():
            if entry.name in {".", ".."} or (not path and entry.name.startswith(".")):
                continue
            item = entry.file_descriptor
            # The way by the name's hash must lead to the same file as the list.
            assert self.fs.get(path + entry.name).address == item.address
            if item.is_dir():
                yield f"{path}{entry.name}/"
                yield from self._walk(item, f"{path}{entry.name}/")
            else:
                yield path + entry.name

    def read(self, path: str, offset: int = 0, length: int = -1) -> bytes:
        stream = self.fs.get(path).open()
        stream.seek(offset)
        return cast("bytes", stream.read(length))

    def sha256(self, path: str) -> str:
        stream = self.fs.get(path).open()
        digest = hashlib.sha256()
        while part := stream.read(4 * MIB):
            digest.update(part)
        return digest.hexdigest()


class ToolsReader:
    """A volume as debugvmfs (VMFS 5) or debugvmfs6 (VMFS 6) understands it; `parts` begin with the volume."""

    def __init__(self, parts: Sequence[Path], version: int) -> None:
        self._parts = [str(part) for part in parts]
        self._program = "debugvmfs" if version == 5 else "debugvmfs6"
        # debugvmfs6 says this of each LUN before anything else, on the same stream as the data.
        self._greeting = b"VMFS version: 6\n" * len(parts) if version == 6 else b""

    def run(self, *words: str) -> bytes:
        done = subprocess.run(
            ["/usr/sbin/" + self._program, *self._parts, *words],
            capture_output=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, (words, done.returncode, done.stderr)
        assert done.stdout.startswith(self._greeting)
        return done.stdout[len(self._greeting) :]

    def names(self, path: str = "") -> list[str]:
        found: list[str] = []
        for line in self.run("ls", "-l", "/" + path).decode().splitlines():
            name = line.split(maxsplit=7)[7]
            if name in {".", ".."} or (not path and name.startswith(".")):
                continue
            if line.startswith("d"):
                found += [f"{path}{name}/", *self.names(f"{path}{name}/")]
            else:
                found.append(path + name)
        return sorted(found)

    def read(self, path: str) -> bytes:
        return self.run("cat", "/" + path)

    def sha256(self, path: str) -> str:
        return hashlib.sha256(self.read(path)).hexdigest()


def loop_over_partition(lun: Lun) -> Any:
    """A loop device over the partition of a LUN, for programs that know no GPT; needs root."""
    part = Volume(name="vmfs", kind="vmfs", offset_bytes=MIB, length_bytes=lun.size_bytes - 2 * MIB)
    return loop_device(lun.image, part, read_only=True)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
