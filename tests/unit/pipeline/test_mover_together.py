"""Writers that share a repository, and blocks that are in it twice."""

from __future__ import annotations

import random
import threading

import pytest

from pipeline.errors import IntegrityError
from pipeline.repository.blobs import BlobCodec, block_id
from pipeline.repository.format import BlobKind
from pipeline.repository.index import write_index_object
from pipeline.repository.packs import PackWriter
from pipeline.restore import restore_disk
from pipeline.testing.builders import BLOCK_SIZE_BYTES, ManualClock, Workbench
from pipeline.testing.disks import MemoryDisk, MemoryTarget
from pipeline.testing.storage import MemoryStorage
from pipeline.verify import image_sha256

BLOCKS = 300


@pytest.fixture
def bench() -> Workbench:
    clock = ManualClock()
    return Workbench(MemoryStorage(clock), clock)


@pytest.mark.parametrize("waited_s", [0, 11])
def test_disks_that_run_at_the_same_time_share_blocks(bench: Workbench, waited_s: int) -> None:
    image = random.Random(1).randbytes(BLOCKS * BLOCK_SIZE_BYTES)
    other = bench.on(bench.storage)
    done = threading.Event()
    clock = bench.clock
    assert isinstance(clock, ManualClock)

    def meanwhile(offset: int) -> None:
        if offset >= 60 * BLOCK_SIZE_BYTES and not done.is_set():
            done.set()
            other.backup(image)
            clock.now_s += waited_s

    backup = bench.backup(MemoryDisk(image, before_read=meanwhile, requests_in_flight=1))
    if waited_s:
        assert backup.stats.blocks.deduplicated > 100
    else:
        assert backup.stats.blocks.new == BLOCKS
    assert bench.restored(backup.map_root, len(image)) == image


def store_again(bench: Workbench, content: bytes) -> None:
    """A second copy of a block in a pack of its own, as another writer leaves it."""
    repository = bench.repository
    codec = BlobCodec(repository.keyring, repository.aead)
    packs = PackWriter(repository.storage, repository.keyring, repository.aead)
    packs.append(codec.encode(BlobKind.BLOCK, block_id(repository.keyring, content), content))
    segment = packs.close()
    assert segment is not None
    write_index_object(repository.storage, repository.keyring, repository.aead, [segment])


@pytest.mark.parametrize("damage", ["bit", "missing"])
@pytest.mark.parametrize("copies", [0, 1])
def test_a_damaged_place_is_passed_over(bench: Workbench, damage: str, copies: int) -> None:
    image = random.Random(2).randbytes(8 * BLOCK_SIZE_BYTES)
    backup = bench.backup(image)
    storage = bench.storage
    assert isinstance(storage, MemoryStorage)
    (pack,) = [name for name in storage.objects if name.startswith("packs/")]
    contents = [image[at : at + BLOCK_SIZE_BYTES] for at in range(0, len(image), BLOCK_SIZE_BYTES)]
    for content in contents * copies:
        store_again(bench, content)
    data = bytearray(storage.read(pack))
    if damage == "missing":
        storage.delete(pack)
    else:
        for number in range(0, 8, 2):
            data[60 + number * (BLOCK_SIZE_BYTES + 116) + 2000] ^= 4
        storage.replace(pack, bytes(data))

    def restored() -> bytearray:
        target = MemoryTarget(len(image))
        restore_disk(
            repository=bench.repository,
            map_root=backup.map_root,
            capacity_bytes=len(image),
            writer=target,
            skip_zeros=True,
            cancel=threading.Event(),
            progress=lambda _progress: None,
            clock=bench.clock,
        )
        return target.image

    if damage == "missing":
        for content in contents:
            blob_id = block_id(bench.repository.keyring, content)
            reader = bench.repository.reader()
            (batch,) = reader.plan([blob_id])
            if copies:
                out = memoryview(bytearray(BLOCK_SIZE_BYTES))
                assert reader.decode(reader.fetch(batch), batch.wanted[0], out) == content
                assert reader.load_block(blob_id) == content
            else:
                with pytest.raises(IntegrityError, match="missing from"):
                    reader.load_block(blob_id)
    elif copies:
        assert restored() == image
        image_sha256(repository=bench.repository, map_root=backup.map_root, capacity_bytes=len(image))
    else:
        with pytest.raises(IntegrityError, match="damaged"):
            restored()
