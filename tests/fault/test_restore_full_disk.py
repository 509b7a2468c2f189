"""A restore into a file system that runs full."""

from __future__ import annotations

import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import StorageFullError
from pipeline.rawfile import RawFileWriter
from pipeline.restore import restore_disk
from pipeline.testing.builders import ManualClock, Workbench
from pipeline.testing.storage import MemoryStorage

MIB = 1 << 20


@pytest.fixture(params=["tmpfs", pytest.param("ext4", marks=pytest.mark.lab)])
def small_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB; needs root."""
    place = tmp_path / "small"
    place.mkdir()
    if request.param == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], check=True)
    else:
        image = tmp_path / "small.img"
        image.write_bytes(b"")
        with image.open("r+b") as out:
            out.truncate(8 * MIB)
        subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", str(image)], check=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_ends_a_restore_and_says_so(small_place: Path) -> None:
    clock = ManualClock()
    bench = Workbench(MemoryStorage(clock), clock, block_size_bytes=64 << 10)
    image = random.Random(1).randbytes(12 * MIB + 512)
    backup = bench.backup(image)
    fits = bench.backup(image[: 3 * MIB + 512])

    def restore(name: str, map_root: str, capacity_bytes: int) -> None:
        writer = RawFileWriter.create(small_place / name, capacity_bytes)
        try:
            restore_disk(
                repository=bench.repository,
                map_root=map_root,
                capacity_bytes=capacity_bytes,
                writer=writer,
                skip_zeros=True,
                cancel=threading.Event(),
                progress=lambda _progress: None,
                clock=clock,
            )
        finally:
            writer.close()

    with pytest.raises(StorageFullError, match="free space or enlarge"):
        restore("large.raw", backup.map_root, len(image))
    (small_place / "large.raw").unlink()
    restore("small.raw", fits.map_root, 3 * MIB + 512)
    assert (small_place / "small.raw").read_bytes() == image[: 3 * MIB + 512]
