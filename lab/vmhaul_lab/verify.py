"""Evidence about disks: digests, file system checks, and the files inside with theirs.

Nothing here changes an image: loops and mounts are read-only, journals are not replayed.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from vmhaul_lab import database, sparse
from vmhaul_lab.commands import run
from vmhaul_lab.loops import loop_device, mounted
from vmhaul_lab.volumes import Volume, find_volumes

_STEP_BYTES = 1 << 20
_ZEROS = bytes(_STEP_BYTES)
_GRAIN_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class FsckResult:
    """What the file system's own checker said of one volume."""

    volume: str
    kind: str
    clean: bool
    text: str


def sha256(image: Path) -> str:
    """SHA-256 of a raw file's whole content, holes as zeros; a hole costs no reading."""
    state = hashlib.sha256()
    with image.open("rb", buffering=0) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        at = 0
        buffer = bytearray(_STEP_BYTES)
        view = memoryview(buffer)
        for start, length in sparse.data_extents(file.fileno(), size_bytes):
            _zeros(state, start - at)
            file.seek(start)
            left = length
            while left:
                got = file.readinto(view[: min(_STEP_BYTES, left)])
                if not got:
                    break
                state.update(view[:got])
                left -= got
            at = start + length
        _zeros(state, size_bytes - at)
    return state.hexdigest()


def _zeros(state: "hashlib._Hash", count: int) -> None:
    while count > 0:
        state.update(_ZEROS[: min(count, _STEP_BYTES)])
        count -= _STEP_BYTES


def content_digest(image: Path) -> str:
    """A digest of size and of all grains (64 KiB) that are not zero, with their places.

    For disks of terabytes with little in them: equal contents give equal digests however the holes
    lie, and zeros cost nothing. Not a SHA-256 of the content; compare only with its like.
    """
    state = hashlib.sha256()
    with image.open("rb", buffering=0) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        state.update(size_bytes.to_bytes(8, "big"))
        done = 0
        for start, length in sparse.data_extents(file.fileno(), size_bytes):
            # Extents may begin and end inside a grain, so that one grain shows up twice.
            at = max(start // _GRAIN_BYTES * _GRAIN_BYTES, done)
            while at < start + length:
                grain = os.pread(file.fileno(), _GRAIN_BYTES, at)
                if grain.strip(b"\0"):
                    state.update(at.to_bytes(8, "big"))
                    state.update(grain)
                at += _GRAIN_BYTES
            done = max(done, at)
    return state.hexdigest()


def fsck(image: Path) -> list[FsckResult]:
    """Check every ext4 and XFS volume of an image, read-only. An image without any gives an empty list."""
    return [_fsck_volume(image, volume) for volume in find_volumes(image) if volume.mountable]


def _fsck_volume(image: Path, volume: Volume) -> FsckResult:
    checker = ("e2fsck", "-f", "-n") if volume.kind == "ext4" else ("xfs_repair", "-n")
    with loop_device(image, volume, read_only=True) as device:
        done = run(*checker, device, ok=range(256))
    said = (done.stdout + done.stderr).strip()
    return FsckResult(
        volume=volume.name, kind=volume.kind, clean=done.returncode == 0, text=said[-2000:]
    )


def files_of(image: Path, volume: Volume) -> dict[str, str]:
    """Every file of a volume: its path with its SHA-256 (symbolic links: their target)."""
    found: dict[str, str] = {}
    with mounted(image, volume, read_only=True) as root:
        for directory, folders, names in os.walk(root):
            folders.sort()
            for name in sorted(names):
                path = Path(directory, name)
                key = str(path.relative_to(root))
                found[key] = f"-> {path.readlink()}" if path.is_symlink() else sha256(path)
    return found


def all_files(image: Path) -> dict[str, str]:
    """The files of all mountable volumes of an image, each path led by its volume's name."""
    return {
        f"{volume.name}:{path}": digest
        for volume in find_volumes(image)
        if volume.mountable
        for path, digest in files_of(image, volume).items()
    }


def check_databases(image: Path) -> dict[str, str]:
    """SQLite's own verdict on every guest database of an image (`ok` when sound)."""
    verdicts: dict[str, str] = {}
    for volume in find_volumes(image):
        if not volume.mountable:
            continue
        with mounted(image, volume, read_only=True) as root:
            if (root / database.PATH).exists():
                verdicts[f"{volume.name}:{database.PATH}"] = database.check(root / database.PATH)
    return verdicts
