from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest

from pipeline.errors import CancelledError, IntegrityError, PermanentPipelineError
from pipeline.model import ReadMode
from pipeline.mover import MoverOptions
from pipeline.planning import ZERO_ROOT
from pipeline.progress import MoverProgress
from pipeline.repository.blobs import BlobCodec, EncodedBlob, block_id
from pipeline.repository.format import BlobKind, Encoding
from pipeline.restore import restore_disk
from pipeline.testing.builders import (
    BLOCK_SIZE_BYTES,
    ManualClock,
    Workbench,
    disk_point,
    restore_point,
)
from pipeline.testing.disks import MemoryDisk, MemoryTarget
from pipeline.testing.storage import MemoryStorage
from pipeline.verify import image_sha256, verify_point
from transports.base import Extent, ReadRequest

BLOCKS = 50
CAPACITY_BYTES = BLOCKS * BLOCK_SIZE_BYTES + 512


@pytest.fixture
def bench() -> Workbench:
    clock = ManualClock()
    return Workbench(MemoryStorage(clock), clock)


def image() -> bytearray:
    """10 blocks of noise, 10 of text (5 different ones), 20 of zeros, 10 of noise, and a short one."""
    rng = random.Random(1)
    texts = [bytes([65 + n]) * BLOCK_SIZE_BYTES for n in range(5)]
    return bytearray(
        b"".join(
            [
                rng.randbytes(10 * BLOCK_SIZE_BYTES),
                *texts,
                *texts,
                bytes(20 * BLOCK_SIZE_BYTES),
                rng.randbytes(10 * BLOCK_SIZE_BYTES),
                rng.randbytes(512),
            ]
        )
    )


def test_a_full_backup_counts_every_block(bench: Workbench) -> None:
    source = image()
    seen: list[MoverProgress] = []
    backup = bench.backup(source, progress=seen.append)
    stats = backup.stats
    assert bench.restored(backup.map_root, CAPACITY_BYTES) == source
    assert (stats.blocks.new, stats.blocks.deduplicated, stats.blocks.zero, stats.blocks.unchanged) == (
        26,
        5,
        20,
        0,
    )
    assert stats.read_bytes == stats.changed_bytes == CAPACITY_BYTES
    objects = bench.storage.objects  # type: ignore[attr-defined]
    assert stats.stored_bytes == sum(
        len(data) for name, data in objects.items() if name.startswith(("packs/", "index/"))
    )
    assert seen[-1].done_bytes == seen[-1].total_bytes == CAPACITY_BYTES
    assert seen[-1].stored_bytes == stats.stored_bytes


def test_unallocated_blocks_are_not_read(bench: Workbench) -> None:
    source = image()
    held = [
        Extent(offset=0, length=20 * BLOCK_SIZE_BYTES),
        Extent(offset=40 * BLOCK_SIZE_BYTES, length=CAPACITY_BYTES - 40 * BLOCK_SIZE_BYTES),
    ]
    disk = MemoryDisk(source)
    backup = bench.backup(disk, plan=bench.plan(CAPACITY_BYTES, allocated=held))
    assert bench.restored(backup.map_root, CAPACITY_BYTES) == source
    assert backup.stats.blocks.zero == 20
    assert not any(20 * BLOCK_SIZE_BYTES <= e.offset < 40 * BLOCK_SIZE_BYTES for e in disk.reads)


def test_an_increment_reads_and_writes_what_changed(bench: Workbench) -> None:
    source = image()
    first = bench.backup(source)
    source[3000:3100] = b"y" * 100
    source[12 * BLOCK_SIZE_BYTES : 14 * BLOCK_SIZE_BYTES] = bytes(2 * BLOCK_SIZE_BYTES)
    changed = [
        Extent(offset=3000, length=100),
        Extent(offset=12 * BLOCK_SIZE_BYTES, length=2 * BLOCK_SIZE_BYTES),
    ]
    disk = MemoryDisk(source)
    plan = bench.plan(CAPACITY_BYTES, previous=first.map_root, changed=changed)
    second = bench.backup(disk, plan=plan)
    assert sum(e.length for e in disk.reads) == second.stats.read_bytes == 3 * BLOCK_SIZE_BYTES
    assert second.stats.changed_bytes == 100 + 2 * BLOCK_SIZE_BYTES
    blocks = second.stats.blocks
    assert (blocks.new, blocks.zero, blocks.deduplicated, blocks.unchanged) == (1, 2, 0, 48)
    assert bench.restored(second.map_root, CAPACITY_BYTES) == source


def test_no_change_writes_no_data(bench: Workbench) -> None:
    first = bench.backup(image())
    before = set(bench.storage.objects)  # type: ignore[attr-defined]
    disk = MemoryDisk(image())
    plan = bench.plan(CAPACITY_BYTES, previous=first.map_root, changed=[])
    second = bench.backup(disk, plan=plan, work_id="again")
    assert second.map_root == first.map_root
    assert disk.reads == []
    assert set(bench.storage.objects) - before == {"work/again"}  # type: ignore[attr-defined]
    assert (second.stats.stored_bytes, second.stats.blocks.unchanged) == (0, 51)


def test_a_full_scan_of_the_same_stores_nothing(bench: Workbench) -> None:
    first = bench.backup(image())
    plan = bench.plan(CAPACITY_BYTES, previous=first.map_root, changed=None)
    assert plan.read_mode is ReadMode.FULL_SCAN
    second = bench.backup(MemoryDisk(image()), plan=plan)
    assert second.map_root == first.map_root
    assert (second.stats.stored_bytes, second.stats.blocks.deduplicated) == (0, 31)


@pytest.mark.parametrize("compression", ["none", "fast", "balanced", "high"])
def test_every_level_restores(bench: Workbench, compression: str) -> None:
    backup = bench.backup(image(), compression=compression, options=MoverOptions(verify_every=1))
    assert bench.restored(backup.map_root, CAPACITY_BYTES) == image()
    assert bench.problems() == ()


def test_an_unknown_level_is_refused(bench: Workbench) -> None:
    with pytest.raises(ValueError, match="balanced"):
        bench.backup(image(), compression="best")


def test_noise_is_stored_as_it_is(bench: Workbench) -> None:
    keyring, algorithm = bench.repository.keyring, bench.repository.aead
    codec = BlobCodec(keyring, algorithm)
    noise = random.Random(2).randbytes(BLOCK_SIZE_BYTES)
    text = b"text" * (BLOCK_SIZE_BYTES // 4)
    for content, encoding in ((noise, Encoding.RAW), (text, Encoding.ZSTD)):
        blob = codec.encode(BlobKind.BLOCK, block_id(keyring, content), content)
        assert blob.encoding is encoding
        codec.verify(blob, content)


def test_what_does_not_decode_never_reaches_a_pack(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that flips a bit between hashing and compressing."""
    honest = BlobCodec.encode

    def flipping(self: BlobCodec, kind: BlobKind, blob_id: bytes, content: bytes) -> EncodedBlob:
        if kind is BlobKind.BLOCK and content[0] == ord("C"):
            content = b"c" + bytes(content[1:])
        return honest(self, kind, blob_id, content)

    monkeypatch.setattr(BlobCodec, "encode", flipping)
    with pytest.raises(IntegrityError, match="another id"):
        bench.backup(image(), options=MoverOptions(workers=2, verify_every=1))
    assert [n for n in bench.storage.objects if n.startswith("packs/")] == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("in_flight", [1, 2, 16])
@pytest.mark.parametrize("request_bytes", [512, 1536, 1 << 20])
def test_readers_of_every_shape(bench: Workbench, in_flight: int, request_bytes: int) -> None:
    disk = MemoryDisk(image(), requests_in_flight=in_flight, max_request_bytes=request_bytes)
    backup = bench.backup(disk)
    assert bench.restored(backup.map_root, CAPACITY_BYTES) == image()
    assert max(extent.length for extent in disk.reads) <= request_bytes


@pytest.mark.parametrize("late_by", [3, 40])
def test_a_reader_may_answer_one_request_long_after_the_others(bench: Workbench, late_by: int) -> None:
    """It waits for its next request while that answer is due; nobody may wait for the answer then."""

    class Stubborn(MemoryDisk):
        def read_many(self, requests: Iterable[ReadRequest]) -> Iterator[ReadRequest]:
            held: ReadRequest | None = None
            for number, request in enumerate(requests):
                if held is None:
                    held = request
                    continue
                self.read_into(request.offset, request.buffer)
                yield request
                if number == late_by:
                    self.read_into(held.offset, held.buffer)
                    yield held

    backup = bench.backup(Stubborn(image(), requests_in_flight=2))
    assert bench.restored(backup.map_root, CAPACITY_BYTES) == image()


def test_cancel_keeps_what_was_read(bench: Workbench) -> None:
    cancel = threading.Event()

    def stop_at(offset: int) -> None:
        if offset >= 20 * BLOCK_SIZE_BYTES:
            cancel.set()

    disk = MemoryDisk(image(), before_read=stop_at, requests_in_flight=1)
    with pytest.raises(CancelledError, match="another attempt"):
        bench.backup(disk, work_id="task", cancel=cancel)
    second = MemoryDisk(image())
    backup = bench.backup(second, work_id="task")
    assert min(extent.offset for extent in second.reads) >= 20 * BLOCK_SIZE_BYTES
    assert backup.stats.read_bytes == CAPACITY_BYTES
    assert bench.restored(backup.map_root, CAPACITY_BYTES) == image()


def test_a_cancel_before_the_start_reads_nothing(bench: Workbench) -> None:
    cancel = threading.Event()
    cancel.set()
    disk = MemoryDisk(image())
    with pytest.raises(CancelledError):
        bench.backup(disk, cancel=cancel)
    assert disk.reads == []


def test_a_progress_that_fails_ends_the_backup(bench: Workbench) -> None:
    def failing(_progress: MoverProgress) -> None:
        raise ConnectionError("nobody listens")

    with pytest.raises(ConnectionError):
        bench.backup(image(), progress=failing)


def test_a_disk_of_another_size_than_planned_is_refused(bench: Workbench) -> None:
    with pytest.raises(PermanentPipelineError, match="resized"):
        bench.backup(image(), plan=bench.plan(CAPACITY_BYTES + 512))
    plan = replace(bench.plan(CAPACITY_BYTES), block_size_bytes=8192)
    with pytest.raises(ValueError, match="blocks of 8192"):
        bench.backup(image(), plan=plan)


def test_an_increment_on_a_map_that_is_gone_fails(bench: Workbench) -> None:
    plan = bench.plan(CAPACITY_BYTES, previous="ab" * 32, changed=[Extent(offset=0, length=512)])
    with pytest.raises(IntegrityError, match="missing from the index"):
        bench.backup(image(), plan=plan)


# ---- restore ----------------------------------------------------------------------------------------


def test_zeros_are_written_when_they_must_be(bench: Workbench) -> None:
    backup = bench.backup(image())
    assert bench.restored(backup.map_root, CAPACITY_BYTES, fill=0xEE) == image()
    assert bench.restored(ZERO_ROOT, 3 << 20, fill=0xEE) == bytes(3 << 20)


def test_restore_says_what_it_did(bench: Workbench) -> None:
    backup = bench.backup(image())
    target = MemoryTarget(CAPACITY_BYTES + 4096, max_request_bytes=1000)
    seen: list[MoverProgress] = []
    stats = restore_disk(
        repository=bench.repository,
        map_root=backup.map_root,
        capacity_bytes=CAPACITY_BYTES,
        writer=target,
        skip_zeros=True,
        cancel=threading.Event(),
        progress=seen.append,
        clock=bench.clock,
    )
    assert target.image == image() + bytes(4096)
    assert target.flushes == 1
    assert stats.blocks == 31
    assert stats.zero_bytes == 20 * BLOCK_SIZE_BYTES
    assert stats.written_bytes + stats.zero_bytes == CAPACITY_BYTES == seen[-1].done_bytes


def test_restore_can_be_cancelled_and_refuses_a_small_target(bench: Workbench) -> None:
    backup = bench.backup(image())
    cancel = threading.Event()
    cancel.set()
    arguments = {
        "repository": bench.repository,
        "map_root": backup.map_root,
        "capacity_bytes": CAPACITY_BYTES,
        "skip_zeros": True,
        "progress": lambda _progress: None,
        "clock": bench.clock,
    }
    with pytest.raises(CancelledError, match="incomplete"):
        restore_disk(writer=MemoryTarget(CAPACITY_BYTES), cancel=cancel, **arguments)  # type: ignore[arg-type]
    with pytest.raises(PermanentPipelineError, match="larger"):
        restore_disk(
            writer=MemoryTarget(CAPACITY_BYTES - 512),
            cancel=threading.Event(),
            **arguments,  # type: ignore[arg-type]
        )


def test_an_error_of_the_writer_passes_through(bench: Workbench) -> None:
    class Broken(MemoryTarget):
        def write_from(self, offset: int, buffer: memoryview) -> None:
            raise ConnectionResetError("host went away")

    backup = bench.backup(image())
    with pytest.raises(ConnectionResetError):
        restore_disk(
            repository=bench.repository,
            map_root=backup.map_root,
            capacity_bytes=CAPACITY_BYTES,
            writer=Broken(CAPACITY_BYTES),
            skip_zeros=True,
            cancel=threading.Event(),
            progress=lambda _progress: None,
            clock=bench.clock,
        )


def test_a_wrong_capacity_is_noticed(bench: Workbench) -> None:
    backup = bench.backup(image())
    for capacity in (CAPACITY_BYTES - 512, CAPACITY_BYTES + 512):
        with pytest.raises(IntegrityError, match="capacity"):
            bench.restored(backup.map_root, capacity)


def test_the_image_is_hashed_as_it_would_be_restored(bench: Workbench) -> None:
    backup = bench.backup(image())
    digest = hashlib.sha256(image()).hexdigest()
    assert digest == image_sha256(
        repository=bench.repository, map_root=backup.map_root, capacity_bytes=CAPACITY_BYTES
    )
    zeros = image_sha256(repository=bench.repository, map_root=ZERO_ROOT, capacity_bytes=5000)
    assert zeros == hashlib.sha256(bytes(5000)).hexdigest()


def test_a_point_is_verified(bench: Workbench) -> None:
    backup = bench.backup(image())
    good = disk_point(backup.map_root, CAPACITY_BYTES)
    hashed = replace(good, disk_key=2001, sha256=hashlib.sha256(image()).hexdigest())
    wrong = replace(good, disk_key=2002, sha256="00" * 32)
    verified = verify_point(
        repository=bench.repository,
        point=restore_point(good, hashed, wrong),
        cancel=threading.Event(),
        progress=lambda _progress: None,
        clock=bench.clock,
    )
    assert [bool(disk.problem) for disk in verified] == [False, False, True]
    assert verified[0].blocks == 31
