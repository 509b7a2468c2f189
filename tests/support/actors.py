"""Processes that share a repository in memory, under a scheduler: each storage call is a place where
others may come between, and where a process may die.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pipeline.storage.base import Buffer, ObjectWriter, Space, StoredObject
from pipeline.storage.wrapper import StorageWrapper
from pipeline.testing.storage import Crash, MemoryStorage
from tests.support.schedule import Scheduler

Watcher = Callable[[str, str, bytes], None]
"""Told of each change after it was made: "put" or "delete", name, content."""


class Process:
    """What dies as a whole."""

    def __init__(self, name: str, lives: int | None = None) -> None:
        """`lives`: dies instead of making its so-manieth change, counted from 1; None: lives on."""
        self.name = name
        self.lives = lives
        self.is_dead = False

    def __str__(self) -> str:
        return self.name

    def step(self, *, is_change: bool) -> None:
        if is_change and self.lives is not None and not self.is_dead:
            self.lives -= 1
            self.is_dead = self.lives <= 0
        if self.is_dead:
            raise Crash(f"{self.name} died")


class SharedStorage(StorageWrapper):
    """The one storage as one process sees it."""

    def __init__(
        self,
        inner: MemoryStorage,
        scheduler: Scheduler,
        process: Process,
        trace: list[str],
        watcher: Watcher,
    ) -> None:
        super().__init__(inner)
        self.memory = inner
        self.process = process
        self._scheduler = scheduler
        self._trace = trace
        self._watcher = watcher

    def gate(self, call: str, name: str, *, is_change: bool = False) -> None:
        self._scheduler.pause()
        self.process.step(is_change=is_change)
        self._trace.append(f"{self.process} {call} {name}")

    def create(self, name: str) -> ObjectWriter:
        return _Writer(self, name)

    def put(self, name: str, data: Buffer) -> None:
        self.gate("put", name, is_change=True)
        self.inner.put(name, data)
        self._watcher("put", name, bytes(data))

    def replace(self, name: str, data: Buffer) -> None:
        self.gate("replace", name, is_change=True)
        self.inner.replace(name, data)
        self._watcher("put", name, bytes(data))

    def read(self, name: str) -> bytes:
        self.gate("read", name)
        return self.inner.read(name)

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        self.gate("read", name)
        return self.inner.read_range(name, offset, length)

    def size_bytes(self, name: str) -> int:
        self.gate("size", name)
        return self.inner.size_bytes(name)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        self.gate("list", prefix)
        return self.inner.list(prefix)

    def delete(self, name: str) -> None:
        self.gate("delete", name, is_change=True)
        content = self.memory.objects.get(name, b"")
        self.inner.delete(name)
        self._watcher("delete", name, content)

    def clean(self, older_than_s: float) -> int:
        self.gate("clean", "")
        return self.inner.clean(older_than_s)

    def space(self) -> Space:
        self.gate("space", "")
        return self.inner.space()


class _Writer:
    """Counts as one change, when it is committed."""

    def __init__(self, storage: SharedStorage, name: str) -> None:
        self._storage = storage
        self._name = name
        self._parts: list[bytes] = []
        storage.gate("create", name)

    def write(self, parts: Sequence[Buffer]) -> None:
        self._parts.extend(bytes(part) for part in parts)

    def commit(self) -> None:
        self._storage.put(self._name, b"".join(self._parts))

    def abort(self) -> None:
        self._parts.clear()
