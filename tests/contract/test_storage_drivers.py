"""Every storage driver against the shipped suite, and drivers that the suite must refuse."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pipeline.errors import ObjectNotFoundError
from pipeline.storage import open_storage
from pipeline.storage.base import Buffer, ObjectWriter, Storage, StoredObject
from pipeline.storage.extents import ExtentConfig, format_location
from pipeline.storage.local import LocalStorage
from pipeline.storage.retry import RetryingStorage
from pipeline.storage.scale_out import Extent, ScaleOutStorage
from pipeline.testing.contract import StorageContract
from pipeline.testing.storage import (
    CrashingStorage,
    Fault,
    FullStorage,
    MemoryStorage,
    ScriptedStorage,
    at_random,
)


class TestLocalStorage(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[Storage]:
        storage = open_storage(str(tmp_path / "repository"), create=True)
        yield storage
        storage.close()


class TestLocalStorageWithoutHardLinks(StorageContract):
    """As on a file system that knows no hard links."""

    @pytest.fixture
    def storage(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
        def no_links(*_args: object, **_kwargs: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr("os.link", no_links)
        storage = LocalStorage(tmp_path)
        yield storage
        storage.close()

    def test_of_many_puts_at_once_one_wins(self, storage: Storage) -> None:
        """Not promised there; the driver's comment says why that does no harm. One at a time holds."""
        storage.put("keys/contended", b"first")
        with pytest.raises(Exception, match="exist"):
            storage.put("keys/contended", b"second")
        assert storage.read("keys/contended") == b"first"


class TestMemoryStorage(StorageContract):
    @pytest.fixture
    def storage(self) -> Storage:
        return MemoryStorage()


class TestWrappersAreStorage(StorageContract):
    @pytest.fixture
    def storage(self) -> Storage:
        return CrashingStorage(FullStorage(MemoryStorage(), room_bytes=1 << 30))


class TestRetriesAreStorage(StorageContract):
    """A storage of which every fourth call fails, before or after its effect, behind the wrapper."""

    @pytest.fixture
    def storage(self) -> Storage:
        seed = random.SystemRandom().randrange(1 << 32)
        print(f"seed {seed}")
        script = at_random(
            random.Random(seed),
            0.25,
            Fault.LOST,
            Fault.ANSWER_LOST,
            Fault.SHORT,
            Fault.REPEATS,
            sparing="read ",  # a whole object that comes short is for whoever knows its content
        )
        return RetryingStorage(
            ScriptedStorage(MemoryStorage(), script), wait=lambda _pause_s: None, patience_s=1e9
        )


class TestScaleOutStorage(StorageContract):
    """Two extents of different size that accept data, and a sealed one."""

    @pytest.fixture
    def storage(self) -> Storage:
        return ScaleOutStorage(
            [
                Extent(name="sealed", storage=MemoryStorage(), is_active=False),
                Extent(name="small", storage=MemoryStorage(capacity_bytes=1 << 30)),
                Extent(name="large", storage=MemoryStorage(capacity_bytes=2 << 30)),
            ]
        )


class TestScaleOutOfDirectories(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[Storage]:
        extents = [ExtentConfig(name=name, location=str(tmp_path / name)) for name in ("a", "b")]
        storage = open_storage(format_location(extents), create=True)
        yield storage
        storage.close()


# ---- drivers that must be caught -------------------------------------------------------------------


class Replaces(MemoryStorage):
    """Forgets that put() must not replace."""

    def put(self, name: str, data: Buffer) -> None:
        self.replace(name, data)


class ReadsShort(MemoryStorage):
    """Gives what there is instead of what was asked for."""

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        return self.read(name)[offset : offset + length]


class ShowsTooEarly(MemoryStorage):
    """Lets others see an object that is still being written."""

    def create(self, name: str) -> ObjectWriter:
        self.replace(name, b"")
        return super().create(name)


class ListsByPrefixOnly(MemoryStorage):
    """Treats a prefix as text: "work/" finds what begins with "work"."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        return super().list(prefix.rstrip("/"))


class KeepsBuffers(MemoryStorage):
    """Stores what a reused buffer holds later."""

    def create(self, name: str) -> ObjectWriter:
        storage = self

        class Writer:
            parts: list[Buffer] = []  # noqa: RUF012 - wrong on purpose, like the rest

            def write(self, parts: Sequence[Buffer]) -> None:
                self.parts = [*self.parts, *parts]

            def commit(self) -> None:
                storage.put(name, b"".join(self.parts))

            def abort(self) -> None:
                self.parts = []

        return Writer()


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (Replaces, "test_put_never_replaces"),
        (Replaces, "test_commit_never_replaces"),
        (ReadsShort, "test_a_range_past_the_end_is_damage"),
        (ShowsTooEarly, "test_nobody_sees_an_object_before_commit"),
        (ListsByPrefixOnly, "test_a_prefix_limits_a_listing"),
        (KeepsBuffers, "test_a_buffer_may_be_reused_after_write"),
    ],
)
def test_the_suite_refuses_a_broken_driver(broken: type[MemoryStorage], test: str) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception, ObjectNotFoundError)):
        getattr(StorageContract(), test)(broken())
