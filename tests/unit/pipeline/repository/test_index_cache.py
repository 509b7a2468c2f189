"""The index in files: the same answers as from memory, whatever happens to the files."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.crypto.aead import Aead
from pipeline.crypto.keyring import Keyring
from pipeline.errors import StorageFullError
from pipeline.repository import index_cache, index_loader
from pipeline.repository.entries import BlobEntry, Location, PackSegment
from pipeline.repository.format import Encoding
from pipeline.repository.index import Index, IndexLoader, write_index_object
from pipeline.repository.index_cache import IndexCache, Names, to_merge
from pipeline.storage import open_storage
from pipeline.storage.base import StoredObject
from pipeline.storage.wrapper import StorageWrapper
from pipeline.testing.storage import MemoryStorage

KEYRING = Keyring(bytes(range(32)), bytes(16))
ALGORITHM = Aead.XCHACHA20_POLY1305


def segment(rng: random.Random, blobs: int, ids: Iterable[bytes] = ()) -> PackSegment:
    """A pack of new blobs, and of `ids` once more; every fifth is a patch."""
    entries = []
    offset = 48
    for number, blob_id in enumerate([*ids, *(rng.randbytes(32) for _ in range(blobs))]):
        length = rng.randrange(100, 5000)
        is_patch = number % 5 == 4
        entries.append(
            BlobEntry(
                blob_id,
                offset,
                length,
                4096,
                rng.choice([1, 2]),
                Encoding.PATCH if is_patch else rng.choice([Encoding.RAW, Encoding.ZSTD]),
                rng.randbytes(32) if is_patch else b"",
            )
        )
        offset += length
    return PackSegment(rng.randbytes(16), offset + 500, tuple(entries))


def put(storage: MemoryStorage, *segments: PackSegment) -> str:
    return write_index_object(storage, KEYRING, ALGORITHM, segments)


def places(segments: Iterable[PackSegment]) -> dict[bytes, set[Location]]:
    found: dict[bytes, set[Location]] = {}
    for each in segments:
        for e in each.entries:
            place = Location(each.pack_id, e.offset, e.length, e.encoding, e.base_id)
            found.setdefault(e.blob_id, set()).add(place)
    return found


def assert_same(index: Index, segments: list[PackSegment]) -> None:
    wanted = places(segments)
    looked_at = list(wanted.items())
    for blob_id, there in looked_at[:: 1 + len(looked_at) // 500]:
        found = index.find_all(blob_id)
        assert set(found) == there
        assert len(found) == len(there)
        assert [p.is_patch for p in found] == sorted(p.is_patch for p in found), "patches last"
        assert index.find(blob_id) == found[0]
        assert blob_id in index
    assert index.pack_sizes() == {s.pack_id: s.pack_size for s in segments}
    assert all(index.pack_size_of(s.pack_id) == s.pack_size for s in segments)
    assert index.pack_size_of(bytes(16)) is None
    assert os.urandom(32) not in index
    assert len(index) == sum(len(s.entries) for s in segments)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_loader, "BULK_BYTES", 20_000)
    monkeypatch.setattr(index_loader, "RUN_RECORDS", 1000)
    monkeypatch.setattr(index_loader, "RECENT_PLACES", 500)
    monkeypatch.setattr(index_loader, "RECENT_OBJECTS", 8)


@pytest.fixture(params=range(2))
def rng(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(request.param)


def test_many_index_objects_come_and_go(tmp_path: Path, rng: random.Random) -> None:
    """The cached view, one that begins anew each time, and one in memory agree with a model."""
    storage = MemoryStorage()
    cached = IndexLoader(storage, KEYRING, tmp_path / "cache")
    in_memory = IndexLoader(storage, KEYRING)
    objects: dict[str, list[PackSegment]] = {}
    known: list[PackSegment] = []
    for step in range(16):
        for _ in range(rng.randrange(4)):
            again = [e.blob_id for s in rng.sample(known, min(2, len(known))) for e in s.entries[:3]]
            fresh = [segment(rng, rng.choice([1, 30, 200]), again) for _ in range(rng.randrange(1, 6))]
            objects[put(storage, *fresh)] = fresh
            known += fresh
        if objects and step % 3 == 2:  # prune: some packs stay, in new index objects
            gone = rng.sample(sorted(objects), rng.randrange(1, len(objects) + 1))
            staying = [s for name in gone for s in objects.pop(name) if rng.random() < 0.6]
            if staying:
                objects[put(storage, *staying)] = staying
            for name in gone:
                storage.delete(name)
        named = {s.pack_id: s for segments in objects.values() for s in segments}
        loader = IndexLoader(storage, KEYRING, tmp_path / "cache") if step % 4 == 0 else cached
        if step % 2:
            loader.follow()
        assert_same(loader.refresh(), list(named.values()))
        assert_same(in_memory.refresh(), list(named.values()))
    assert_same(IndexLoader(storage, KEYRING, tmp_path / "cache").refresh(), list(named.values()))


def test_a_new_process_reads_only_what_is_new(tmp_path: Path, rng: random.Random) -> None:
    class Counting(MemoryStorage):
        reads = 0

        def read(self, name: str) -> bytes:
            self.reads += 1
            return super().read(name)

    storage = Counting()
    segments = [segment(rng, 100) for _ in range(30)]
    for each in segments:
        put(storage, each)
    IndexLoader(storage, KEYRING, tmp_path).refresh()
    assert storage.reads == 30
    segments.append(segment(rng, 10))
    put(storage, segments[-1])
    assert_same(IndexLoader(storage, KEYRING, tmp_path).refresh(), segments)
    assert storage.reads == 31


def test_an_edition_without_a_damaged_place_takes_the_place_of_the_whole_one(
    tmp_path: Path, rng: random.Random
) -> None:
    storage = MemoryStorage()
    whole = segment(rng, 600)
    old = put(storage, whole)
    loader = IndexLoader(storage, KEYRING, tmp_path)
    assert_same(loader.refresh(), [whole])
    less = PackSegment(whole.pack_id, whole.pack_size, whole.entries[1:])
    put(storage, less)
    storage.delete(old)
    for each in (loader, IndexLoader(storage, KEYRING, tmp_path)):
        index = each.refresh()
        assert index.find(whole.entries[0].blob_id) is None
        assert_same(index, [less])


def test_what_this_process_wrote_is_found_before_a_listing_has_it(tmp_path: Path) -> None:
    rng = random.Random(5)

    class Late(MemoryStorage):
        hidden: set[str] = set()  # noqa: RUF012 - one for this test

        def list(self, prefix: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
            return iter([e for e in super().list(prefix) if e.name not in self.hidden])

    storage = Late()
    loader = IndexLoader(storage, KEYRING, tmp_path)
    loader.refresh()
    mine = segment(rng, 10)
    name = put(storage, mine)
    storage.hidden.add(name)
    loader.written(name, [mine])
    other = segment(rng, 10)
    put(storage, other)
    assert_same(loader.refresh(), [mine, other])
    storage.hidden.clear()
    assert_same(loader.refresh(), [mine, other])
    storage.delete(name)
    assert_same(loader.refresh(), [other])


def test_follow_sees_others_and_writes_to_the_cache(tmp_path: Path, rng: random.Random) -> None:
    storage = MemoryStorage()
    loader = IndexLoader(storage, KEYRING, tmp_path)
    index = loader.refresh()
    segments = []
    for _ in range(40):
        segments.append(segment(rng, 50))
        put(storage, segments[-1])
        loader.follow()
        assert segments[-1].entries[0].blob_id in index
    assert_same(index, segments)
    assert len(index.runs()) > 0
    assert index.recent.places < 1000


@pytest.mark.parametrize("where", ["current", "names", "head", "bucket", "tables", "truncated", "gone"])
def test_damage_is_noticed_and_mended(tmp_path: Path, where: str) -> None:
    rng = random.Random(where)
    storage = MemoryStorage()
    segments = [segment(rng, 500) for _ in range(6)]
    for each in segments:
        put(storage, each)
    loader = IndexLoader(storage, KEYRING, tmp_path)
    index = loader.refresh()
    (run,) = index.runs()
    path = run.path
    if where in {"current", "names"}:
        path = next(tmp_path.glob(f"{where}*"))
    data = bytearray(path.read_bytes())
    at = {"head": 20, "bucket": 4096 + 40, "tables": len(data) - 50}.get(where, len(data) // 2)
    data[at] ^= 4
    if where == "gone":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if where == "truncated" else data)
    # The one that has it open, where what it has open is damaged, and one that opens it.
    assert_same(index, segments)
    again = IndexLoader(storage, KEYRING, tmp_path)
    assert_same(again.refresh(), segments)
    put(storage, extra := segment(rng, 10))
    assert_same(IndexLoader(storage, KEYRING, tmp_path).refresh(), [*segments, extra])
    assert_same(loader.refresh(), [*segments, extra])


def test_damage_is_noticed_while_runs_are_merged(tmp_path: Path, rng: random.Random) -> None:
    storage = MemoryStorage()
    segments = [segment(rng, 600) for _ in range(2)]
    for each in segments:
        put(storage, each)
        IndexLoader(storage, KEYRING, tmp_path).refresh()
    run = next(tmp_path.glob("run-*"))
    data = bytearray(run.read_bytes())
    data[4096 + 7] ^= 1
    run.write_bytes(data)
    for _ in range(6):
        segments.append(segment(rng, 600))
        put(storage, segments[-1])
        assert_same(IndexLoader(storage, KEYRING, tmp_path).refresh(), segments)


def test_a_full_disk_means_memory(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = MemoryStorage()
    segments = [segment(rng, 500) for _ in range(4)]
    for each in segments:
        put(storage, each)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(index_cache, "_write_synced", full)
        loader = IndexLoader(storage, KEYRING, tmp_path)
        assert_same(loader.refresh(), segments)
        assert not (tmp_path / "current").exists()
        patched.setattr(index_loader, "MEMORY_PLACES", 100)
        with pytest.raises(StorageFullError, match="needs a cache of about"):
            IndexLoader(storage, KEYRING, tmp_path).refresh()
    assert_same(IndexLoader(storage, KEYRING, tmp_path).refresh(), segments)
    assert len(list(tmp_path.glob("run-*"))) == 1, "what the failed ones left behind is gone"


def test_a_directory_that_cannot_be_made_means_memory(tmp_path: Path, rng: random.Random) -> None:
    storage = MemoryStorage()
    put(storage, one := segment(rng, 600))
    (tmp_path / "file").write_text("")
    assert_same(IndexLoader(storage, KEYRING, tmp_path / "file" / "cache").refresh(), [one])


def test_nobody_else_may_read_it(tmp_path: Path, rng: random.Random) -> None:
    storage = MemoryStorage()
    put(storage, segment(rng, 600))
    IndexLoader(storage, KEYRING, tmp_path / "a" / "b").refresh()
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    modes = {stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / "a" / "b").iterdir()}
    assert modes == {0o600}


def test_a_cache_of_another_repository_is_not_used(tmp_path: Path, rng: random.Random) -> None:
    storage, other = MemoryStorage(), MemoryStorage()
    put(storage, segment(rng, 600))
    IndexLoader(storage, KEYRING, tmp_path).refresh()
    keyring = Keyring(bytes(range(32)), bytes([1]) * 16)
    theirs = segment(rng, 600)
    write_index_object(other, keyring, ALGORITHM, [theirs])
    assert_same(IndexLoader(other, keyring, tmp_path).refresh(), [theirs])


def _open_and_look(location: str, cache: str, wanted: list[bytes], results: object) -> None:
    index = IndexLoader(open_storage(location), KEYRING, Path(cache)).refresh()
    results.put(sum(blob_id in index for blob_id in wanted))  # type: ignore[attr-defined]


def test_processes_at_once(tmp_path: Path) -> None:
    rng = random.Random(9)
    (tmp_path / "storage").mkdir()
    storage = open_storage(str(tmp_path / "storage"))
    segments = [segment(rng, 700) for _ in range(20)]
    for each in segments:
        write_index_object(storage, KEYRING, ALGORITHM, [each])
    wanted = [e.blob_id for s in segments for e in s.entries[::10]]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    started = [
        context.Process(
            target=_open_and_look,
            args=(str(tmp_path / "storage"), str(tmp_path / "cache"), wanted, results),
        )
        for _ in range(4)
    ]
    for process in started:
        process.start()
    found = [results.get(timeout=120) for _ in started]
    for process in started:
        process.join(timeout=120)
    assert found == [len(wanted)] * 4
    assert len(list((tmp_path / "cache").glob("run-*"))) == 1


class Paused(StorageWrapper):
    """Its first listing is answered as it was when it was asked for, after `meanwhile` has run."""

    def __init__(self, inner: MemoryStorage, meanwhile: Callable[[], object]) -> None:
        super().__init__(inner)
        self._meanwhile: Callable[[], object] | None = meanwhile

    def list(self, prefix: str) -> Iterator[StoredObject]:
        entries = list(self.inner.list(prefix))
        meanwhile, self._meanwhile = self._meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return iter(entries)


def test_an_older_listing_of_another_process_hides_nothing(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_loader, "RECENT_OBJECTS", 1)
    storage = MemoryStorage()
    first, second = segment(rng, 5), segment(rng, 5)
    gone = put(storage, segment(rng, 5))
    put(storage, first)
    IndexLoader(storage, KEYRING, tmp_path).refresh()
    storage.delete(gone)
    has_listed, may_go_on = threading.Event(), threading.Event()

    def wait() -> None:
        has_listed.set()
        assert may_go_on.wait(60)

    slow = IndexLoader(Paused(storage, wait), KEYRING, tmp_path)
    with ThreadPoolExecutor(1) as thread:
        refreshed = thread.submit(slow.refresh)
        assert has_listed.wait(60)
        put(storage, second)
        IndexLoader(storage, KEYRING, tmp_path).refresh()

        def go_on() -> None:
            may_go_on.set()
            refreshed.result(60)

        try:
            index = IndexLoader(Paused(storage, go_on), KEYRING, tmp_path).refresh()
        finally:
            may_go_on.set()
    assert_same(index, [first, second])
    assert_same(slow.refresh(), [first, second])


def test_names_change_as_sorted_lists() -> None:
    names = Names().changed(without=(), added={b"b" * 16: [1, 2], b"d" * 16: []})
    names = names.changed(without={b"d" * 16}, added={b"a" * 16: [3], b"c" * 16: [4], b"e" * 16: [5]})
    assert [(key, list(named)) for key, named in names.each()] == [
        (b"a" * 16, [3]),
        (b"b" * 16, [1, 2]),
        (b"c" * 16, [4]),
        (b"e" * 16, [5]),
    ]
    assert b"c" * 16 in names
    assert b"d" * 16 not in names


def test_which_runs_are_merged() -> None:
    assert to_merge([], []) == set()
    assert to_merge([10], [0]) == set()
    assert to_merge([10], [3]) == {0}
    assert to_merge([1000, 10], [0, 0]) == set()
    assert to_merge([1000, 10, 10], [0, 0, 0]) == {1, 2}
    assert to_merge([10, 10, 25, 70], [0] * 4) == {0, 1, 2, 3}
    assert to_merge([10**6, 10**5, 10**4, 10**3, 10**2], [0] * 5) == {3, 4}


def test_files_of_a_dead_process_are_swept(tmp_path: Path, rng: random.Random) -> None:
    storage = MemoryStorage()
    put(storage, one := segment(rng, 600))
    for name in ("run-0123", "names-0123", "current-0123"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "something-else").write_bytes(b"not ours")
    assert_same(IndexLoader(storage, KEYRING, tmp_path).refresh(), [one])
    kinds = sorted(each.name.partition("-")[0] for each in tmp_path.iterdir())
    assert kinds == ["current", "lock", "names", "run", "something"]
    assert IndexCache(tmp_path, bytes(16)).adopt()
