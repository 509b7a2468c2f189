"""Storage in memory, and wrappers that fail on purpose. Shipped, so that other packages' tests may use
them. All are implementations of the storage contract.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum

from pipeline.errors import (
    IntegrityError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageFullError,
    StoragePermissionError,
    StorageUnavailableError,
)
from pipeline.storage.base import (
    Buffer,
    ObjectWriter,
    Retention,
    Space,
    Storage,
    StoredObject,
    checked_name,
)
from pipeline.storage.wrapper import StorageWrapper, WholeObjectWriter

MEMORY_CAPACITY_BYTES = 1 << 40


class Crash(BaseException):
    """The process dies here. Not an Exception: no handler in the code under test may swallow it."""


class MemoryStorage:
    """Objects in a dictionary; passes the contract suite."""

    def __init__(
        self,
        clock: Callable[[], float] = lambda: 0.0,
        *,
        capacity_bytes: int = MEMORY_CAPACITY_BYTES,
    ) -> None:
        """`capacity_bytes` is what space() tells; FullStorage is what keeps to it."""
        self._clock = clock
        self._capacity_bytes = capacity_bytes
        self._lock = threading.Lock()
        self.objects: dict[str, bytes] = {}
        self.modified_at_s: dict[str, float] = {}

    @property
    def location(self) -> str:
        return "memory"

    @property
    def retention(self) -> Retention | None:
        return None

    def create(self, name: str) -> ObjectWriter:
        checked_name(name)
        return WholeObjectWriter(self, name)

    def put(self, name: str, data: Buffer) -> None:
        checked_name(name)
        with self._lock:
            if name in self.objects:
                raise ObjectExistsError(f"{name} exists already in {self.location}")
            self._set(name, bytes(data))

    def replace(self, name: str, data: Buffer) -> None:
        checked_name(name)
        with self._lock:
            self._set(name, bytes(data))

    def read(self, name: str) -> bytes:
        checked_name(name)
        with self._lock:
            if name not in self.objects:
                raise ObjectNotFoundError(f"no {name} in {self.location}")
            return self.objects[name]

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        data = self.read(name)[offset : offset + length]
        if len(data) != length:
            raise IntegrityError(
                f"{name} in {self.location} ends before {offset + length}; it is truncated"
            )
        return data

    def size_bytes(self, name: str) -> int:
        return len(self.read(name))

    def list(self, prefix: str) -> Iterator[StoredObject]:
        with self._lock:
            names = sorted(name for name in self.objects if name.startswith(prefix))
            found = [
                StoredObject(
                    name=name,
                    size_bytes=len(self.objects[name]),
                    modified_at_s=self.modified_at_s[name],
                )
                for name in names
            ]
        return iter(found)

    def delete(self, name: str) -> None:
        checked_name(name)
        with self._lock:
            self.objects.pop(name, None)
            self.modified_at_s.pop(name, None)

    def clean(self, older_than_s: float) -> int:
        del older_than_s  # writers that died leave nothing in memory
        return 0

    def space(self) -> Space:
        with self._lock:
            used = sum(map(len, self.objects.values()))
        total = self._capacity_bytes
        return Space(free_bytes=max(0, total - used), total_bytes=total, used_bytes=used)

    def close(self) -> None:
        return

    def _set(self, name: str, data: bytes) -> None:
        self.objects[name] = data
        self.modified_at_s[name] = self._clock()


class CrashingStorage(StorageWrapper):
    """Dies before the `crash_at`-th mutation (counted from 1) and at every one after it: a dead process
    does nothing more. `mutations` counts those that were asked for.
    """

    def __init__(self, inner: Storage, crash_at: int | None = None) -> None:
        super().__init__(inner)
        self.crash_at = crash_at
        self.mutations = 0
        self._lock = threading.Lock()

    def mutate(self) -> None:
        with self._lock:
            self.mutations += 1
            if self.crash_at is not None and self.mutations >= self.crash_at:
                raise Crash(f"died before write {self.crash_at}")

    def create(self, name: str) -> ObjectWriter:
        return _CrashingWriter(self, self.inner.create(name))

    def put(self, name: str, data: Buffer) -> None:
        self.mutate()
        self.inner.put(name, data)

    def replace(self, name: str, data: Buffer) -> None:
        self.mutate()
        self.inner.replace(name, data)

    def delete(self, name: str) -> None:
        self.mutate()
        self.inner.delete(name)


class _CrashingWriter:
    def __init__(self, storage: CrashingStorage, inner: ObjectWriter) -> None:
        self._storage = storage
        self._inner = inner

    def write(self, parts: Sequence[Buffer]) -> None:
        self._inner.write(parts)

    def commit(self) -> None:
        self._storage.mutate()
        self._inner.commit()

    def abort(self) -> None:
        self._inner.abort()


class FullStorage(StorageWrapper):
    """Has room for so many bytes; then every write fails as a full disk does."""

    def __init__(self, inner: Storage, room_bytes: int) -> None:
        super().__init__(inner)
        self.room_bytes = room_bytes
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        with self._lock:
            if count > self.room_bytes:
                raise StorageFullError(f"no space left in {self.location}; free space, then run again")
            self.room_bytes -= count

    def give_back(self, count: int) -> None:
        with self._lock:
            self.room_bytes += count

    def create(self, name: str) -> ObjectWriter:
        return _FullWriter(self, self.inner.create(name))

    def put(self, name: str, data: Buffer) -> None:
        self.take(len(data))
        self.inner.put(name, data)

    def replace(self, name: str, data: Buffer) -> None:
        self.take(len(data))
        self.inner.replace(name, data)


class _FullWriter:
    def __init__(self, storage: FullStorage, inner: ObjectWriter) -> None:
        self._storage = storage
        self._inner = inner
        self._taken = 0

    def write(self, parts: Sequence[Buffer]) -> None:
        count = sum(map(len, parts))
        self._storage.take(count)
        self._taken += count
        self._inner.write(parts)

    def commit(self) -> None:
        self._inner.commit()
        self._taken = 0

    def abort(self) -> None:
        self._storage.give_back(self._taken)
        self._taken = 0
        self._inner.abort()


class Fault(StrEnum):
    """What a call of a ScriptedStorage meets."""

    LOST = "lost"  # the storage cannot be reached: no effect
    ANSWER_LOST = "answer lost"  # the effect, and then a timeout
    SHORT = "short"  # a read that ends too early; other calls: as LOST
    REPEATS = "repeats"  # a listing gives every name twice; other calls: nothing
    DENIED = "denied"  # a permanent refusal


Script = Callable[[int, str], "Fault | None"]
"""Asked before each call with its number, from 1, and what it is: "put packs/ab/abcd"."""


class ScriptedStorage(StorageWrapper):
    """Fails by a script. `fired` counts by fault; a test looks that its script met something.

    A listing may also be late: an object shows up in listings only when `lists_late_s` have passed since it
    was made, by `clock`, while reading it works at once.
    """

    def __init__(
        self,
        inner: Storage,
        script: Script = lambda _number, _what: None,
        *,
        lists_late_s: float = 0.0,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        super().__init__(inner)
        self.script = script
        self.calls = 0
        self.fired: dict[Fault, int] = dict.fromkeys(Fault, 0)
        self._lists_late_s = lists_late_s
        self._listed: set[str] = set()
        self._clock = clock
        self._lock = threading.Lock()

    def met(self, what: str) -> Fault | None:
        with self._lock:
            self.calls += 1
            fault = self.script(self.calls, what)
            if fault is not None:
                self.fired[fault] += 1
        if fault is Fault.LOST or (fault is Fault.SHORT and not what.startswith("read")):
            raise StorageUnavailableError(f"{self.location} did not answer: {what}")
        if fault is Fault.DENIED:
            raise StoragePermissionError(f"{self.location} refuses: {what}")
        return fault

    def answered(self, fault: Fault | None, what: str) -> None:
        if fault is Fault.ANSWER_LOST:
            raise StorageUnavailableError(f"{self.location} did not answer in time: {what}")

    def create(self, name: str) -> ObjectWriter:
        fault = self.met(f"create {name}")
        writer = _ScriptedWriter(self, self.inner.create(name), name)
        self.answered(fault, f"create {name}")
        return writer

    def put(self, name: str, data: Buffer) -> None:
        fault = self.met(f"put {name}")
        self.inner.put(name, data)
        self.answered(fault, f"put {name}")

    def replace(self, name: str, data: Buffer) -> None:
        fault = self.met(f"replace {name}")
        self.inner.replace(name, data)
        self.answered(fault, f"replace {name}")

    def read(self, name: str) -> bytes:
        fault = self.met(f"read {name}")
        data = self.inner.read(name)
        self.answered(fault, f"read {name}")
        return data[: len(data) // 2] if fault is Fault.SHORT else data

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        fault = self.met(f"read_range {name}")
        data = self.inner.read_range(name, offset, length)
        self.answered(fault, f"read_range {name}")
        return data[: len(data) // 2] if fault is Fault.SHORT else data

    def size_bytes(self, name: str) -> int:
        fault = self.met(f"size_bytes {name}")
        size = self.inner.size_bytes(name)
        self.answered(fault, f"size_bytes {name}")
        return size

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Breaks off in its middle where its answer is lost."""
        fault = self.met(f"list {prefix}")
        entries = [entry for entry in self.inner.list(prefix) if not self._is_late(entry)]
        broken = fault is Fault.ANSWER_LOST
        for entry in entries[: len(entries) // 2] if broken else entries:
            yield entry
            if fault is Fault.REPEATS:
                yield entry
        self.answered(fault, f"list {prefix}")

    def _is_late(self, entry: StoredObject) -> bool:
        """Once listed, always: an object that is replaced keeps its place in listings."""
        if not self._lists_late_s:
            return False
        if entry.modified_at_s + self._lists_late_s > self._clock() and entry.name not in self._listed:
            return True
        self._listed.add(entry.name)
        return False

    def delete(self, name: str) -> None:
        fault = self.met(f"delete {name}")
        self.inner.delete(name)
        self._listed.discard(name)
        self.answered(fault, f"delete {name}")

    def clean(self, older_than_s: float) -> int:
        fault = self.met("clean")
        freed = self.inner.clean(older_than_s)
        self.answered(fault, "clean")
        return freed

    def space(self) -> Space:
        fault = self.met("space")
        space = self.inner.space()
        self.answered(fault, "space")
        return space


class _ScriptedWriter:
    def __init__(self, storage: ScriptedStorage, inner: ObjectWriter, name: str) -> None:
        self._storage = storage
        self._inner = inner
        self._name = name

    def write(self, parts: Sequence[Buffer]) -> None:
        fault = self._storage.met(f"write {self._name}")
        self._inner.write(parts)
        self._storage.answered(fault, f"write {self._name}")

    def commit(self) -> None:
        fault = self._storage.met(f"commit {self._name}")
        self._inner.commit()
        self._storage.answered(fault, f"commit {self._name}")

    def abort(self) -> None:
        self._inner.abort()


def at_calls(faults: Mapping[int, Fault]) -> Script:
    """A script by the numbers of calls."""
    return lambda number, _what: faults.get(number)


def at_random(rng: random.Random, share: float, *faults: Fault, sparing: str = "") -> Script:
    """A script that lets a share of all calls meet one of the faults; none whose text begins with
    `sparing`, where that is given.
    """

    def script(_number: int, what: str) -> Fault | None:
        if (sparing and what.startswith(sparing)) or rng.random() >= share:
            return None
        return rng.choice(faults)

    return script
