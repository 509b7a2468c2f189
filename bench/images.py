"""Disk images with what a real machine has on its disk: this machine's own files, and the day after.

Day one is an ext4 file system filled by `mkfs.ext4 -d`; day two is a copy in which debugfs removed,
replaced and added files, so that data and metadata change where a file system changes them. Neither
needs a mount or root.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from transports.base import Extent

MIB: Final = 1 << 20
CHANGE_GRAIN_BYTES: Final = 64 << 10
"""What vSphere's change tracking reports is a multiple of this on disks of a few GiB to some hundred."""
DAY_TWO_SHARE: Final = 0.05
"""Files of day one that are gone the day after; about as much is new, and as much again is changed."""
SKIP_LARGER_BYTES: Final = 256 * MIB
SEED: Final = 20240601


@dataclass(frozen=True, slots=True)
class Images:
    day_one: Path
    day_two: Path


def build_images(directory: Path, source: Path, size_mib: int) -> Images:
    """Both images, in a directory that is empty. Two thirds of the size are filled with files."""
    files = list(_files(source, size_mib * MIB * 2 // 3))
    rng = random.Random(SEED)
    later = [path for path in files if rng.random() < DAY_TWO_SHARE]
    tree = directory / "tree"
    for path in sorted(set(files) - set(later)):
        _copy(path, tree / path.relative_to(source))
    day_one = directory / "day-one.raw"
    make_ext4(day_one, tree, size_mib)
    day_two = directory / "day-two.raw"
    run_quietly(["cp", "--sparse=always", str(day_one), str(day_two)])
    _pass_a_day(directory, source, day_two, sorted(set(files) - set(later)), later, rng)
    shutil.rmtree(tree)
    sync_files([day_one, day_two])
    return Images(day_one, day_two)


def make_ext4(image: Path, tree: Path, size_mib: int) -> None:
    """A file system with what is below `tree`."""
    with image.open("wb") as out:
        out.truncate(size_mib * MIB)
    options = ["-q", "-F", "-b", "4096", "-m", "1", "-E", "lazy_itable_init=1"]
    run_quietly(["mkfs.ext4", *options, "-d", str(tree), str(image)])


def changed_extents(before: Path, after: Path) -> list[Extent]:
    """What change tracking would report between the two."""
    found: list[Extent] = []
    with before.open("rb") as old, after.open("rb") as new:
        offset = 0
        while chunk := new.read(16 * MIB):
            other = old.read(len(chunk))
            if chunk != other:
                for at in range(0, len(chunk), CHANGE_GRAIN_BYTES):
                    piece = chunk[at : at + CHANGE_GRAIN_BYTES]
                    if piece != other[at : at + CHANGE_GRAIN_BYTES]:
                        found.append(Extent(offset=offset + at, length=len(piece)))
            offset += len(chunk)
    return found


def _files(source: Path, limit_bytes: int) -> Iterator[Path]:
    """Regular files of whole directories, in an order that only depends on their names."""
    directories = sorted(
        (Path(root) for root, _, _ in os.walk(source)),
        key=lambda path: hashlib.sha256(str(path).encode()).digest(),
    )
    total = 0
    for directory in directories:
        for path in sorted(directory.iterdir()):
            if path.is_symlink() or not path.is_file() or not os.access(path, os.R_OK):
                continue
            # debugfs reads its commands by words.
            if path.stat().st_size > SKIP_LARGER_BYTES or any(
                c.isspace() or c == '"' for c in str(path)
            ):
                continue
            total += path.stat().st_size
            if total > limit_bytes:
                return
            yield path


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


def _pass_a_day(
    directory: Path, source: Path, image: Path, present: list[Path], new: list[Path], rng: random.Random
) -> None:
    commands = []
    for path in present:
        chance = rng.random()
        name = f"/{path.relative_to(source)}"
        if chance < DAY_TWO_SHARE:
            commands.append(f"rm {name}")
        elif chance < 2 * DAY_TWO_SHARE:
            edited = directory / "tree" / path.relative_to(source)
            with edited.open("ab") as out:
                out.write(rng.randbytes(512))
            commands += [f"rm {name}", f"write {edited} {name}"]
    for path in new:
        parent = path.relative_to(source).parent
        if (directory / "tree" / parent).is_dir():
            commands.append(f"write {path} /{path.relative_to(source)}")
    script = directory / "day-two.debugfs"
    script.write_text("".join(f"{command}\n" for command in commands))
    run_quietly(["debugfs", "-w", "-f", str(script), str(image)])
    script.unlink()


def run_quietly(command: list[str]) -> str:
    """What it printed. Raises CalledProcessError."""
    # /sbin is not in everybody's path.
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    done = subprocess.run(command, check=True, env=environment, capture_output=True, cwd="/")
    return done.stdout.decode(errors="replace")


def sync_files(paths: list[Path]) -> None:
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
