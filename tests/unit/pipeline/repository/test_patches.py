from __future__ import annotations

import itertools
import random

import pytest

from pipeline.errors import IntegrityError
from pipeline.repository.blobs import BlobCodec, EncodedBlob, block_id
from pipeline.repository.format import (
    MAX_PATCH_DEPTH,
    PATCH_HEAD,
    PATCH_PIECE_BYTES,
    BlobKind,
    Encoding,
)
from pipeline.repository.index import IndexLoader, write_index_object
from pipeline.repository.packs import PackWriter
from pipeline.repository.patches import (
    CHANGED_SHARE_MAX,
    difference,
    pack_head,
    parse_head,
    patch_into,
    payload_limit,
)
from pipeline.repository.reader import BlobReader
from pipeline.testing.builders import ManualClock, Workbench
from pipeline.testing.storage import MemoryStorage


def patched(base: bytes, payload: bytes, length: int, piece_bytes: int, what: str) -> bytearray:
    out = bytearray(length)
    patch_into(out, base, payload, piece_bytes, what)
    return out


LENGTHS = [1, 511, 512, 513, 4096, 40_000, 65_536, 65_537, 200_000, 1 << 20, (1 << 20) - 512]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_patch_makes_the_content_again(length: int) -> None:
    rng = random.Random(length)
    piece = PATCH_PIECE_BYTES
    base = rng.randbytes(length)
    for _ in range(20):
        content = bytearray(base)
        for _ in range(rng.randrange(1, 5)):
            at = rng.randrange(length)
            content[at] ^= 1 + rng.randrange(255)
        found = difference(base, content)
        changed = {at // piece for at in range(length) if base[at] != content[at]}
        pieces = -(-length // piece)
        if len(changed) / pieces > CHANGED_SHARE_MAX:
            assert found is None
            continue
        assert found is not None
        payload, share = found
        assert share == len(changed) / pieces
        assert len(payload) <= payload_limit(length, piece)
        assert patched(base, payload, length, piece, "blob") == content


def test_too_much_change_and_other_lengths_make_no_patch() -> None:
    assert difference(bytes(8192), bytes(8191)) is None
    assert difference(b"", b"") is None
    assert difference(bytes(1 << 20), b"\1" * (1 << 20)) is None


def test_every_bit_of_the_bitmap_is_its_piece() -> None:
    length = 20 * PATCH_PIECE_BYTES - 100
    base = bytes(length)
    for number in range(20):
        content = bytearray(base)
        content[min(number * PATCH_PIECE_BYTES + 7, length - 1)] = 1
        found = difference(base, content)
        assert found is not None
        payload = found[0]
        assert int.from_bytes(payload[:3], "little") == 1 << number
        assert len(payload) - 3 == min(PATCH_PIECE_BYTES, length - number * PATCH_PIECE_BYTES)


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"", "does not fit"),
        (b"\x10", "beyond its block"),
        (b"\x01" + bytes(511), "ends before"),
        (b"\x01" + bytes(513), "goes on"),
        (b"\x00" + bytes(1), "goes on"),
    ],
)
def test_a_payload_that_cannot_be_is_damage(payload: bytes, said: str) -> None:
    with pytest.raises(IntegrityError, match=f"blob 7.*{said}"):
        patched(bytes(2048), payload, 2048, 512, "blob 7")
    with pytest.raises(IntegrityError, match="does not fit"):
        patched(bytes(2047), b"\0", 2048, 512, "blob 7")


def test_a_head_that_cannot_be_is_damage() -> None:
    good = pack_head(b"b" * 32, Encoding.ZSTD)
    assert parse_head(good, "blob").piece_bytes == PATCH_PIECE_BYTES
    for bad in (
        good[:-1],
        PATCH_HEAD.pack(b"b" * 32, 4095, 0, bytes(3)),
        PATCH_HEAD.pack(b"b" * 32, 256, 0, bytes(3)),
        PATCH_HEAD.pack(b"b" * 32, 1 << 25, 0, bytes(3)),
        PATCH_HEAD.pack(b"b" * 32, 4096, 2, bytes(3)),
        PATCH_HEAD.pack(b"b" * 32, 4096, 1, b"\0\0\1"),
        PATCH_HEAD.pack(bytes(32), 4096, 1, bytes(3)),
    ):
        with pytest.raises(IntegrityError, match="damaged"):
            parse_head(bad, "blob")


# ---- patches that build on one another --------------------------------------------------------------


class Chain:
    """Blobs that are patches of one another, which a writer of ours would not make."""

    def __init__(self, compression: str = "fast") -> None:
        self.bench = Workbench(MemoryStorage(ManualClock()), ManualClock())
        repository = self.bench.repository
        self.keyring = repository.keyring
        self.codec = BlobCodec(self.keyring, repository.aead, compression)
        self.packs = PackWriter(repository.storage, self.keyring, repository.aead)
        self.loader = IndexLoader(repository.storage, self.keyring)

    def add(self, blob: EncodedBlob | None) -> None:
        assert blob is not None
        self.packs.append(blob)
        segment = self.packs.close()
        assert segment is not None
        repository = self.bench.repository
        write_index_object(repository.storage, self.keyring, repository.aead, [segment])

    def reader(self) -> BlobReader:
        repository = self.bench.repository
        return BlobReader(repository.storage, self.keyring, self.loader.refresh())

    def whole(self, content: bytes) -> bytes:
        blob_id = block_id(self.keyring, content)
        self.add(self.codec.encode(BlobKind.BLOCK, blob_id, content))
        return blob_id

    def patch(self, content: bytes, base: bytes) -> bytes:
        blob_id, base_id = block_id(self.keyring, content), block_id(self.keyring, base)
        self.add(self.codec.encode_patch(blob_id, content, base_id, base, len(base)))
        return blob_id


def versions(count: int) -> list[bytes]:
    rng = random.Random(5)
    image = bytearray(rng.randbytes(32 << 10))
    found = [bytes(image)]
    for _ in range(count):
        at = rng.randrange(len(image) - 100)
        image[at : at + 100] = rng.randbytes(100)
        found.append(bytes(image))
    return found


@pytest.mark.parametrize("compression", ["none", "fast", "high"])
def test_patches_up_to_the_depth_of_the_format_are_read(compression: str) -> None:
    chain = Chain(compression)
    contents = versions(MAX_PATCH_DEPTH + 1)
    ids = [chain.whole(contents[0])]
    ids += [chain.patch(after, before) for before, after in itertools.pairwise(contents)]
    for blob_id, content in zip(ids[:-1], contents[:-1], strict=True):
        assert chain.reader().load_block(blob_id) == content
        reader = chain.reader()
        (batch,) = reader.plan([blob_id])
        out = memoryview(bytearray(len(content)))
        assert reader.decode(reader.fetch(batch), batch.wanted[0], out) == content
    with pytest.raises(IntegrityError, match=f"more than {MAX_PATCH_DEPTH} patches"):
        chain.reader().load_block(ids[-1])


def test_a_missing_base_is_named_with_its_patch() -> None:
    chain = Chain()
    before, after = versions(1)
    blob_id = chain.patch(after, before)
    base_id = block_id(chain.keyring, before)
    for read in (chain.reader().load_block, lambda blob_id: chain.reader().plan([blob_id])):
        with pytest.raises(IntegrityError) as caught:
            read(blob_id)
        assert blob_id.hex() in str(caught.value)
        assert base_id.hex() in str(caught.value)


def test_patches_of_each_other_are_refused() -> None:
    """Only somebody with the keys could write such."""
    chain = Chain()
    before, after = versions(1)
    chain.patch(after, before)
    blob_id = chain.patch(before, after)
    with pytest.raises(IntegrityError, match=f"more than {MAX_PATCH_DEPTH} patches"):
        chain.reader().load_block(blob_id)


def test_a_patch_of_itself_or_of_a_map_node_is_refused() -> None:
    chain = Chain()
    before, after = versions(1)
    chain.whole(before)
    blob_id = block_id(chain.keyring, after)
    blob = chain.codec.encode_patch(blob_id, after, blob_id, before, len(before))
    assert blob is not None
    stored = bytes(blob.header) + bytes(blob.body)
    with pytest.raises(IntegrityError, match="none can be"):
        chain.codec.decode(BlobKind.BLOCK, blob_id, stored, lambda _: before)
    with pytest.raises(IntegrityError, match="none can be"):
        chain.codec.decode(BlobKind.BLOCK, blob_id, stored)


def test_a_patch_on_another_base_is_noticed() -> None:
    chain = Chain()
    before, after = versions(1)
    blob_id = block_id(chain.keyring, after)
    blob = chain.codec.encode_patch(blob_id, after, block_id(chain.keyring, before), before, 32 << 10)
    assert blob is not None
    stored = bytes(blob.header) + bytes(blob.body)
    with pytest.raises(IntegrityError, match="another id"):
        chain.codec.decode(BlobKind.BLOCK, blob_id, stored, lambda _: bytes(len(before)))


def test_of_two_copies_the_whole_one_is_found() -> None:
    before, after = versions(1)
    for whole_first in (True, False):
        chain = Chain()
        chain.whole(before)
        if whole_first:
            blob_id = chain.whole(after)
            chain.patch(after, before)
        else:
            chain.patch(after, before)
            blob_id = chain.whole(after)
        assert chain.reader().locate(blob_id).base_id == b""


def test_a_patch_that_saves_little_is_not_made() -> None:
    chain = Chain()
    rng = random.Random(1)
    before = rng.randbytes(24 << 10) + bytes(8 << 10)
    after = rng.randbytes(24 << 10) + bytes(8 << 10)
    # A quarter of it is the same, but takes no space in the whole block.
    whole = chain.codec.encode(BlobKind.BLOCK, b"w" * 32, before)
    assert chain.codec.encode_patch(b"a" * 32, after, b"b" * 32, before, whole.length) is None
    assert chain.codec.encode_patch(b"a" * 32, after, b"b" * 32, before, 10 * whole.length) is not None
