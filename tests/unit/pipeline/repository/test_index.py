from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest

from pipeline.crypto.aead import Aead
from pipeline.crypto.keyring import Keyring
from pipeline.errors import IntegrityError
from pipeline.repository.format import BLOB_HEADER
from pipeline.repository.index import (
    BlobEntry,
    Index,
    IndexLoader,
    Location,
    PackSegment,
    format_segments,
    parse_segments,
    write_index_object,
)
from pipeline.repository.table import CompactTable, IdSet
from pipeline.storage.base import StoredObject
from pipeline.storage.wrapper import StorageWrapper
from pipeline.testing.storage import MemoryStorage

KEYRING = Keyring(bytes(32), bytes(16))


def segment(number: int, count: int = 3) -> PackSegment:
    rng = random.Random(number)
    entries = tuple(BlobEntry(rng.randbytes(32), 48 + n * 1000, 1000, 4096, 1, 1) for n in range(count))
    return PackSegment(bytes([number]) * 16, 48 + count * 1000 + 200, entries)


def test_the_table_equals_a_dictionary() -> None:
    rng = random.Random(1)
    table, model = CompactTable(4), {}
    keys = [rng.randbytes(32) for _ in range(20_000)]
    for number, key in enumerate(keys + keys[:500]):
        value = number.to_bytes(4, "big")
        table.put(key, value)
        model[key[:16]] = value
    assert len(table) == len(model)
    assert dict(table.items()) == model
    assert [key for key, _ in table.items()] == sorted(model)
    for key in keys[::7]:
        assert table.get(key) == model[key[:16]]
        assert key in table
    for _ in range(1000):
        assert table.get(rng.randbytes(32)) is None


def test_a_set_of_ids() -> None:
    ids = IdSet()
    assert ids.add(b"a" * 32)
    assert not ids.add(b"a" * 32)
    assert b"a" * 32 in ids
    assert b"b" * 32 not in ids
    assert len(ids) == 1


def test_segments_there_and_back() -> None:
    segments = [segment(1), segment(2, 0), segment(3, 700)]
    assert parse_segments(format_segments(segments), "x") == segments


def test_segments_that_cannot_be_are_refused() -> None:
    good = format_segments([segment(1)])
    outside = PackSegment(bytes(16), 1000, (BlobEntry(bytes(32), 900, 101, 1, 1, 0),))
    tiny = PackSegment(bytes(16), 1000, (BlobEntry(bytes(32), 0, BLOB_HEADER.size - 1, 1, 1, 0),))
    huge = PackSegment(bytes(16), (1 << 30) + 1, ())
    for payload in (
        good[:-1],
        good + b"x",
        good[:20] + b"\xff" + good[21:],
        format_segments([outside]),
        format_segments([tiny]),
        format_segments([huge]),
    ):
        with pytest.raises(IntegrityError):
            parse_segments(payload, "index/x")


def test_find_and_sizes() -> None:
    index = Index()
    one, other = segment(1), segment(2)
    index.add(one)
    index.add(other)
    for each in (one, other):
        for entry in each.entries:
            assert index.find(entry.blob_id) == Location(
                each.pack_id, entry.offset, entry.length, entry.encoding
            )
    assert index.find(bytes(32)) is None
    assert index.pack_sizes() == {each.pack_id: each.pack_size for each in (one, other)}
    assert len(index) == 6


def test_the_loader_reads_what_is_new_and_notices_what_is_gone() -> None:
    storage = MemoryStorage()
    loader = IndexLoader(storage, KEYRING)
    first = write_index_object(storage, KEYRING, Aead.XCHACHA20_POLY1305, [segment(1)])
    assert len(loader.refresh()) == 3
    second = write_index_object(storage, KEYRING, Aead.XCHACHA20_POLY1305, [segment(2)])
    index = loader.refresh()
    assert len(index) == 6
    assert loader.refresh() is index
    write_index_object(storage, KEYRING, Aead.XCHACHA20_POLY1305, [segment(2)])
    storage.delete(first)
    storage.delete(second)
    assert len(loader.refresh()) == 3
    assert segment(1).pack_id not in loader.index.pack_sizes()


def test_the_loader_lists_again_when_an_object_vanishes() -> None:
    inner = MemoryStorage()
    old = write_index_object(inner, KEYRING, Aead.XCHACHA20_POLY1305, [segment(1)])
    write_index_object(inner, KEYRING, Aead.XCHACHA20_POLY1305, [segment(2)])

    class Merging(StorageWrapper):
        """Between the listing and the reading a prune replaces an object by a merged one."""

        def list(self, prefix: str) -> Iterator[StoredObject]:
            listed = list(super().list(prefix))
            if old in inner.objects:
                write_index_object(inner, KEYRING, Aead.XCHACHA20_POLY1305, [segment(1)])
                inner.delete(old)
            return iter(listed)

    index = IndexLoader(Merging(inner), KEYRING).refresh()
    assert set(index.pack_sizes()) == {segment(1).pack_id, segment(2).pack_id}


def test_an_index_that_never_holds_still_is_an_error() -> None:
    class Restless(StorageWrapper):
        def list(self, prefix: str) -> Iterator[StoredObject]:
            yield StoredObject(name=f"{prefix}{'0' * 32}", size_bytes=1, modified_at_s=0)

    with pytest.raises(IntegrityError, match="vanish"):
        IndexLoader(Restless(MemoryStorage()), KEYRING).refresh()


def test_several_threads_at_once() -> None:
    index = Index()
    segments = [segment(number, 200) for number in range(20)]
    wrong: list[object] = []

    def look() -> None:
        for each in segments * 3:
            for entry in each.entries[::20]:
                found = index.find(entry.blob_id)
                if found is not None and found.pack_id != each.pack_id:
                    wrong.append(found)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for each in segments:
        index.add(each)
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(index) == 4000
