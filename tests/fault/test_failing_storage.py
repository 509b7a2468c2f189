"""Storage that is full, gone or refuses: said as it is, and nothing corrupt is left."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from pipeline.errors import (
    PermanentPipelineError,
    PipelineError,
    StorageFullError,
    StorageMissingError,
    StoragePermissionError,
    StorageUnavailableError,
)
from pipeline.mover import MoverOptions
from pipeline.storage import open_storage
from pipeline.testing.builders import (
    BLOCK_SIZE_BYTES,
    ManualClock,
    Workbench,
    disk_point,
    restore_point,
)
from pipeline.testing.disks import MemoryDisk
from pipeline.testing.storage import FullStorage, MemoryStorage
from transports.errors import TransientTransportError

CAPACITY_BYTES = 40 * BLOCK_SIZE_BYTES + 512


def noise(seed: int) -> bytearray:
    rng = random.Random(seed)
    image = bytearray(rng.randbytes(CAPACITY_BYTES))
    image[8 * BLOCK_SIZE_BYTES : 12 * BLOCK_SIZE_BYTES] = bytes(4 * BLOCK_SIZE_BYTES)
    image[20 * BLOCK_SIZE_BYTES : 30 * BLOCK_SIZE_BYTES] = b"text " * (2 * BLOCK_SIZE_BYTES)
    return image


def test_a_full_disk_leaves_nothing_corrupt_and_the_next_attempt_goes_on() -> None:
    image = noise(1)
    options = MoverOptions(workers=2, checkpoint_every_s=0.0)
    finished = False
    for room_bytes in range(2000, 400_000, 9000):
        clock = ManualClock()
        storage = MemoryStorage(clock)
        bench = Workbench(storage, clock)
        base = bench.backup(noise(2))
        point = bench.commit(restore_point(disk_point(base.map_root, CAPACITY_BYTES)))
        full = bench.on(FullStorage(storage, room_bytes))
        try:
            full.backup(image, work_id="task", options=options)
            finished = True
        except StorageFullError:
            pass
        survivor = bench.on(storage)
        assert survivor.problems() == ()
        assert survivor.restored(point.disks[0].map_root, CAPACITY_BYTES) == noise(2)
        again = survivor.backup(image, work_id="task", options=options)
        assert survivor.restored(again.map_root, CAPACITY_BYTES) == image
        if finished:
            return
    pytest.fail("the backup never fitted")


def test_a_pack_that_did_not_fit_takes_no_space() -> None:
    storage = MemoryStorage()
    bench = Workbench(storage, ManualClock(), pack_target_bytes=1 << 30)
    full = FullStorage(storage, room_bytes=60_000)
    before = set(storage.objects)
    with pytest.raises(PermanentPipelineError, match="free space"):
        bench.on(full).backup(noise(1), work_id="task")
    assert {name.partition("/")[0] for name in set(storage.objects) - before} == {"work"}
    assert full.room_bytes > 59_000


def test_a_lost_connection_keeps_what_was_read() -> None:
    image = noise(1)
    bench = Workbench(MemoryStorage(), ManualClock())
    lost_at = 30 * BLOCK_SIZE_BYTES

    def cut(offset: int) -> None:
        if offset >= lost_at:
            raise TransientTransportError("connection lost")

    with pytest.raises(TransientTransportError, match="connection lost"):
        bench.backup(MemoryDisk(image, before_read=cut, requests_in_flight=1), work_id="task")
    second = MemoryDisk(image)
    backup = bench.backup(second, work_id="task")
    assert min(extent.offset for extent in second.reads) == lost_at
    assert bench.restored(backup.map_root, CAPACITY_BYTES) == image


def test_a_directory_that_is_gone_or_closed_to_us(tmp_path: Path) -> None:
    with pytest.raises(StorageMissingError, match="mount"):
        open_storage(str(tmp_path / "no" / "mount"))
    with pytest.raises(StorageMissingError, match="parent"):
        open_storage(str(tmp_path / "no" / "mount"), create=True)
    with pytest.raises(StorageMissingError, match="absolute"):
        open_storage("relative/path")
    place = tmp_path / "repository"
    storage = open_storage(str(place), create=True)
    storage.put("a", b"x")
    shutil.rmtree(place)
    with pytest.raises(PermanentPipelineError):
        storage.put("b", b"x")
    assert not place.exists(), "nothing was written to where the mount had been"


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (28, PermanentPipelineError),
        (122, PermanentPipelineError),
        (30, StoragePermissionError),
        (116, StorageUnavailableError),
        (5, StorageUnavailableError),
    ],
)
def test_errors_of_the_operating_system_are_translated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[PipelineError]
) -> None:
    storage = open_storage(str(tmp_path / "r"), create=True)

    def failing(*_args: object) -> int:
        raise OSError(number, "scripted")

    monkeypatch.setattr("os.writev", failing)
    with pytest.raises(expected, match=r"writing packs/a .*scripted"):
        storage.put("packs/a", b"data")
    monkeypatch.undo()
    assert list(storage.list("")) == []
    assert list((tmp_path / "r" / "tmp").iterdir()) == [], "nothing is left behind"
