"""The suite that every storage driver must pass. A driver's test derives from StorageContract and gives
the fixture `storage`: an empty, open storage. A driver exists when it passes.
"""

from __future__ import annotations

import threading

import pytest

from pipeline.errors import IntegrityError, ObjectExistsError, ObjectNotFoundError
from pipeline.storage.base import Storage

DATA = bytes(range(256)) * 40


class StorageContract:
    """Derive, and provide `storage`."""

    @pytest.fixture
    def storage(self) -> Storage:
        raise AssertionError("the derived class provides the storage")

    # ---- objects ---------------------------------------------------------------------------------

    def test_what_was_put_is_read(self, storage: Storage) -> None:
        storage.put("packs/ab/abcdef", DATA)
        assert storage.read("packs/ab/abcdef") == DATA
        assert storage.size_bytes("packs/ab/abcdef") == len(DATA)

    def test_an_empty_object_is_an_object(self, storage: Storage) -> None:
        storage.put("empty", b"")
        assert storage.read("empty") == b""
        assert [entry.name for entry in storage.list("")] == ["empty"]

    def test_every_kind_of_buffer_is_taken(self, storage: Storage) -> None:
        storage.put("a", bytearray(DATA))
        storage.put("b", memoryview(DATA)[10:20])
        assert storage.read("a") == DATA
        assert storage.read("b") == DATA[10:20]

    def test_put_never_replaces(self, storage: Storage) -> None:
        storage.put("points/one", b"first")
        with pytest.raises(ObjectExistsError):
            storage.put("points/one", b"second")
        assert storage.read("points/one") == b"first"

    def test_of_many_puts_at_once_one_wins(self, storage: Storage) -> None:
        outcomes: list[bytes | None] = []
        barrier = threading.Barrier(4)

        def attempt(number: int) -> None:
            data = bytes([number]) * 1000
            barrier.wait()
            try:
                storage.put("keys/contended", data)
            except ObjectExistsError:
                outcomes.append(None)
            else:
                outcomes.append(data)

        threads = [threading.Thread(target=attempt, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [data for data in outcomes if data is not None]
        assert len(outcomes) == 4
        assert len(winners) == 1
        assert storage.read("keys/contended") == winners[0]

    def test_replace_makes_and_replaces(self, storage: Storage) -> None:
        storage.replace("work/one", b"first")
        storage.replace("work/one", b"second, longer")
        storage.replace("work/one", b"3")
        assert storage.read("work/one") == b"3"
        assert [entry.name for entry in storage.list("work/")] == ["work/one"]

    def test_a_range_is_exact(self, storage: Storage) -> None:
        storage.put("pack", DATA)
        assert storage.read_range("pack", 100, 57) == DATA[100:157]
        assert storage.read_range("pack", 0, len(DATA)) == DATA

    def test_a_range_past_the_end_is_damage(self, storage: Storage) -> None:
        storage.put("pack", DATA)
        with pytest.raises(IntegrityError):
            storage.read_range("pack", len(DATA) - 10, 11)
        with pytest.raises(IntegrityError):
            storage.read_range("pack", len(DATA) + 5, 1)

    @pytest.mark.parametrize("call", ["read", "size_bytes", "read_range"])
    def test_what_is_not_there_is_said_so(self, storage: Storage, call: str) -> None:
        arguments = (0, 1) if call == "read_range" else ()
        with pytest.raises(ObjectNotFoundError):
            getattr(storage, call)("no/such/object", *arguments)

    @pytest.mark.parametrize(
        "name", ["", "/a", "a//b", "../a", "a/../b", ".a", "A", "a b", "a/", "a\n"]
    )
    def test_names_keep_to_the_rules(self, storage: Storage, name: str) -> None:
        with pytest.raises(ValueError, match="name"):
            storage.put(name, b"x")

    def test_delete_may_be_repeated(self, storage: Storage) -> None:
        storage.put("doomed/one", b"x")
        storage.delete("doomed/one")
        storage.delete("doomed/one")
        assert list(storage.list("")) == []
        storage.put("doomed/one", b"y")
        assert storage.read("doomed/one") == b"y"

    # ---- writers ---------------------------------------------------------------------------------

    def test_parts_are_appended_in_order(self, storage: Storage) -> None:
        writer = storage.create("packs/one")
        writer.write([b"ab", bytearray(b"cd"), b""])
        writer.write([memoryview(b"xefx")[1:3]])
        writer.write([])
        writer.commit()
        assert storage.read("packs/one") == b"abcdef"

    def test_a_buffer_may_be_reused_after_write(self, storage: Storage) -> None:
        buffer = bytearray(b"first")
        writer = storage.create("packs/one")
        writer.write([buffer])
        buffer[:] = b"later"
        writer.write([buffer])
        writer.commit()
        assert storage.read("packs/one") == b"firstlater"

    def test_many_parts_at_once(self, storage: Storage) -> None:
        parts = [bytes([n % 256]) * (n % 7) for n in range(5000)]
        writer = storage.create("packs/one")
        writer.write(parts)
        writer.commit()
        assert storage.read("packs/one") == b"".join(parts)

    def test_nobody_sees_an_object_before_commit(self, storage: Storage) -> None:
        writer = storage.create("packs/one")
        writer.write([DATA])
        assert list(storage.list("")) == []
        with pytest.raises(ObjectNotFoundError):
            storage.read("packs/one")
        writer.commit()
        assert [entry.name for entry in storage.list("")] == ["packs/one"]

    def test_abort_leaves_nothing(self, storage: Storage) -> None:
        writer = storage.create("packs/one")
        writer.write([DATA])
        writer.abort()
        writer.abort()
        assert list(storage.list("")) == []
        storage.put("packs/one", b"another")
        assert storage.read("packs/one") == b"another"

    def test_abort_after_commit_does_nothing(self, storage: Storage) -> None:
        writer = storage.create("packs/one")
        writer.write([DATA])
        writer.commit()
        writer.abort()
        assert storage.read("packs/one") == DATA

    def test_commit_never_replaces(self, storage: Storage) -> None:
        writer = storage.create("packs/one")
        writer.write([b"late"])
        storage.put("packs/one", b"early")
        with pytest.raises(ObjectExistsError):
            writer.commit()
        writer.abort()
        assert storage.read("packs/one") == b"early"

    # ---- listings --------------------------------------------------------------------------------

    def test_a_listing_ascends_and_is_complete(self, storage: Storage) -> None:
        names = [
            "index/0b",
            "index/0a",
            "packs/ff/ff01",
            "packs/0a/0a02",
            "packs/0a/0a01",
            "points/1-2",
            "vmhaul-repository.json",
            "a/b.c",
            "a.b/c",
            "a-b/c",
        ]
        for name in names:
            storage.put(name, name.encode())
        listed = list(storage.list(""))
        assert [entry.name for entry in listed] == sorted(names)
        assert all(entry.size_bytes == len(entry.name) for entry in listed)

    def test_a_prefix_limits_a_listing(self, storage: Storage) -> None:
        for name in ("work/a", "work/b", "works/c", "wor/d", "work-e/f"):
            storage.put(name, b"")
        assert [entry.name for entry in storage.list("work/")] == ["work/a", "work/b"]
        assert list(storage.list("nothing/")) == []

    def test_objects_may_be_deleted_while_listing(self, storage: Storage) -> None:
        for number in range(20):
            storage.put(f"packs/{number:02}/object", b"x")
        for entry in storage.list("packs/"):
            storage.delete(entry.name)
        assert list(storage.list("packs/")) == []

    def test_clean_touches_no_object(self, storage: Storage) -> None:
        storage.put("packs/one", DATA)
        storage.clean(float("inf"))
        assert storage.read("packs/one") == DATA

    def test_space_adds_up(self, storage: Storage) -> None:
        space = storage.space()
        assert 0 <= space.free_bytes <= space.total_bytes
        assert 0 <= space.used_bytes <= space.total_bytes

    def test_close_may_be_repeated(self, storage: Storage) -> None:
        storage.close()
        storage.close()
