"""The index of one repository as files on this machine, so that it needs little memory.

A directory for each repository (mode 0700, files 0600):

| file | what |
|---|---|
| `current` | which files count: JSON and its BLAKE3; replaced by rename |
| `run-<random>` | records, see `index_run`; a few of them, merged as they become many |
| `names-<random>` | index objects that are in the runs, what each names, and which packs are dead |
| `lock` | locked (`flock`, on Windows its first byte) by the one process that changes something |

Nothing here is needed: it may be deleted at any time and is made again from the repository's index objects. It holds
halves of keyed ids, ids of bases, and where they are: what an outsider learns from it is what the
storage tells too (how many blobs there are, how long they are). A process that dies leaves files that `current` does not name; the
next one that changes something deletes them. Files are synced before `current` names them. On Windows an open file cannot be deleted:
what another process still reads goes with a later change.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from pipeline.repository.index_run import CacheDamagedError, Run
from pipeline.repository.layout import OBJECT_ID_BYTES
from transports import system

if TYPE_CHECKING:
    from pipeline.repository.index_build import Records
    from pipeline.repository.index_recent import RecentPack

CURRENT: Final = "current"
LOCK: Final = "lock"
LOCK_POLL_S: Final = 0.1
DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o600
MAX_RUNS: Final = 4
MERGE_FACTOR: Final = 2
"""Runs are merged with all that together have at least half of what they have: each record is so merged a
few times in its life, and a look-up asks few runs."""
DEAD_SHARE: Final = 4
"""A run with a quarter of its records in dead packs is written again without them."""
FORMAT: Final = 1
DIGEST_BYTES: Final = 32


def holds_id(ids: bytes | bytearray, object_id: bytes) -> bool:
    """Whether `ids`, ascending and back to back, have this one."""
    low, high = 0, len(ids) // OBJECT_ID_BYTES
    while low < high:
        middle = (low + high) // 2
        found = ids[middle * OBJECT_ID_BYTES : (middle + 1) * OBJECT_ID_BYTES]
        if found == object_id:
            return True
        if found < object_id:
            low = middle + 1
        else:
            high = middle
    return False


@dataclass(frozen=True, slots=True)
class Names:
    """Which index objects are in the runs, and the packs (editions) that each names."""

    ids: bytes = b""
    """Of index objects, ascending, back to back."""
    counts: array[int] = field(default_factory=lambda: array("I"))
    editions: array[int] = field(default_factory=lambda: array("Q"))

    def __len__(self) -> int:
        return len(self.counts)

    def each(self) -> Iterator[tuple[bytes, array[int]]]:
        at = 0
        for number, count in enumerate(self.counts):
            object_id = self.ids[number * OBJECT_ID_BYTES : (number + 1) * OBJECT_ID_BYTES]
            yield object_id, self.editions[at : at + count]
            at += count

    def __contains__(self, object_id: bytes) -> bool:
        return holds_id(self.ids, object_id)

    def object_ids(self) -> Iterator[bytes]:
        for at in range(0, len(self.ids), OBJECT_ID_BYTES):
            yield self.ids[at : at + OBJECT_ID_BYTES]

    def changed(self, *, without: Collection[bytes], added: Mapping[bytes, Iterable[int]]) -> Names:
        ids, counts, editions = bytearray(), array("I"), array("Q")
        fresh = sorted(added.items(), reverse=True)
        for object_id, named in self.each():
            while fresh and fresh[-1][0] < object_id:
                _append(ids, counts, editions, *fresh.pop())
            if fresh and fresh[-1][0] == object_id:
                fresh.pop()
            if object_id not in without:
                _append(ids, counts, editions, object_id, named)
        while fresh:
            _append(ids, counts, editions, *fresh.pop())
        return Names(bytes(ids), counts, editions)


def _append(
    ids: bytearray,
    counts: array[int],
    editions: array[int],
    object_id: bytes,
    named: Iterable[int],
) -> None:
    before = len(editions)
    ids += object_id
    editions.extend(named)
    counts.append(len(editions) - before)


@dataclass(frozen=True, slots=True)
class CacheState:
    """What `current` named at one moment; open."""

    generation: int = 0
    runs: tuple[Run, ...] = ()
    dead: tuple[bytes, ...] = ()
    """For each run a byte for each pack (1: dead), or nothing."""
    names: Names = field(default_factory=Names)
    names_file: str = ""


class IndexCache:
    """The directory. Methods that change something want the lock to be held."""

    def __init__(self, directory: Path, repository_id: bytes) -> None:
        """Makes the directory. Raises OSError."""
        self.directory = directory
        self._repository_id = repository_id
        directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        directory.chmod(DIRECTORY_MODE)
        self.state = CacheState()

    # ---- lock ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self, *, wait: bool) -> Iterator[bool]:
        """Yields whether this process may change the cache; without `wait` False when another one is
        at it. Raises OSError.
        """
        flags = os.O_RDWR | os.O_CREAT | system.OPEN_FLAGS
        fd = os.open(self.directory / LOCK, flags, FILE_MODE)
        try:
            pause = threading.Event()
            while not (got := system.lock_file(fd)) and wait:
                pause.wait(LOCK_POLL_S)
            try:
                if got:
                    self.adopt()
                yield got
            finally:
                if got:
                    system.unlock_file(fd)
        finally:
            os.close(fd)

    # ---- reading -------------------------------------------------------------------------------

    def adopt(self) -> bool:
        """Take over what another process made; True when there was something. A damaged cache counts as
        none.
        """
        for _ in range(20):
            try:
                found = self._read_current()
                if found is None:
                    changed = self.state.generation != 0
                    self.state = CacheState()
                    return changed
                if found["generation"] == self.state.generation:
                    return False
                self.state = self._open(found)
            except FileNotFoundError:
                continue  # merged away between the two looks
            except (CacheDamagedError, KeyError, TypeError, ValueError):
                break
            return True
        self.state = CacheState()
        return True

    def _read_current(self) -> dict[str, object] | None:
        try:
            data = system.read_file(self.directory / CURRENT)
        except FileNotFoundError:
            return None
        text, _, digest = data.rpartition(b"\n")
        if blake3(text).hexdigest().encode() != digest:
            raise ValueError("damaged")
        found = json.loads(text)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError("of another vmhaul")
        return found

    def _open(self, found: dict[str, object]) -> CacheState:
        known = {run.path.name: run for run in self.state.runs}
        run_names = [str(name) for name in _list(found["runs"])]
        runs = tuple(
            known.get(name) or Run(self.directory / name, self._repository_id) for name in run_names
        )
        names_file = str(found["names"])
        names, dead = self._read_names(self.directory / names_file, runs)
        return CacheState(int(str(found["generation"])), runs, dead, names, names_file)

    def _read_names(self, path: Path, runs: Sequence[Run]) -> tuple[Names, tuple[bytes, ...]]:
        data = system.read_file(path)
        body, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
        if blake3(self._repository_id + body).digest() != digest:
            raise CacheDamagedError(f"the index cache {path} is damaged")
        sizes = array("Q", body[:16])
        count, total = sizes
        at = 16 + count * OBJECT_ID_BYTES
        ids = body[16:at]
        counts = array("I", body[at : at + 4 * count])
        at += 4 * count
        editions = array("Q", body[at : at + 8 * total])
        at += 8 * total
        dead = []
        for run in runs:
            has_dead = body[at]
            dead.append(body[at + 1 : at + 1 + run.pack_count] if has_dead else b"")
            at += 1 + (run.pack_count if has_dead else 0)
        return Names(ids, counts, editions), tuple(dead)

    # ---- changing, under the lock --------------------------------------------------------------

    def add_run(
        self,
        records: Records,
        packs: Sequence[RecentPack],
        added: Mapping[bytes, Iterable[int]],
    ) -> None:
        """One more run, of records that are in memory; `added`: index objects that are in it."""
        from pipeline.repository import index_build

        runs, dead = list(self.state.runs), list(self.state.dead)
        if packs:
            path = self._new("run")
            rows = index_build.pack_rows(packs)
            keep = rows["count"] > 0
            index_build.write_run(path, self._repository_id, records, rows, keep)
            runs.append(Run(path, self._repository_id))
            dead.append(b"")
        alive = {edition for named in added.values() for edition in named}
        dead = [revived(run, flags, alive) for run, flags in zip(runs, dead, strict=True)]
        self._publish(runs, dead, self.state.names.changed(without=(), added=added))

    def forget(self, is_listed: Callable[[bytes], bool]) -> None:
        """Index objects that are not listed any more; packs that no other names are dead."""
        state = self.state
        gone = {each for each in state.names.object_ids() if not is_listed(each)}
        if gone:
            names = state.names.changed(without=gone, added={})
            self._publish(list(state.runs), list(state.dead), names)

    def set_alive(self, editions: array[int]) -> None:
        """All packs but these are dead."""
        import numpy as np

        from pipeline.repository import index_build

        dead = index_build.dead_flags(self.state.runs, np.asarray(editions, np.uint64))
        if tuple(dead) != self.state.dead:
            self._publish(list(self.state.runs), dead, self.state.names)

    def merge(self) -> None:
        """Merge runs where there are many, or much of them is dead."""
        state = self.state
        dead_counts = [dead_places(run, dead) for run, dead in zip(state.runs, state.dead, strict=True)]
        chosen = to_merge([run.records for run in state.runs], dead_counts)
        if not chosen:
            return
        from pipeline.repository import index_build  # only now: it is not for nothing

        path = self._new("run")
        index_build.merge_runs(
            path,
            self._repository_id,
            [state.runs[number] for number in chosen],
            [state.dead[number] for number in chosen],
        )
        runs = [run for number, run in enumerate(state.runs) if number not in chosen]
        dead = [flags for number, flags in enumerate(state.dead) if number not in chosen]
        merged = Run(path, self._repository_id)
        self._publish([merged, *runs], [b"", *dead], state.names)

    def discard(self) -> None:
        """Everything goes; the cache is empty."""
        (self.directory / CURRENT).unlink(missing_ok=True)
        self.state = CacheState()
        self.sweep()

    def sweep(self) -> None:
        """Delete what a process that died left behind."""
        counts = {run.path.name for run in self.state.runs} | {self.state.names_file, CURRENT, LOCK}
        for entry in list(os.scandir(self.directory)):
            if entry.name not in counts and entry.name.startswith(("run-", "names-", CURRENT)):
                with contextlib.suppress(OSError):
                    Path(entry.path).unlink()

    def _publish(self, runs: list[Run], dead: list[bytes], names: Names) -> None:
        path = self._new("names")
        body = b"".join(
            (
                array("Q", [len(names), len(names.editions)]).tobytes(),
                names.ids,
                names.counts.tobytes(),
                names.editions.tobytes(),
                *(b"\1" + flags if flags else b"\0" for flags in dead),
            )
        )
        _write_synced(path, body + blake3(self._repository_id + body).digest())
        generation = int.from_bytes(os.urandom(6), "big") | 1
        text = json.dumps(
            {
                "format": FORMAT,
                "generation": generation,
                "names": path.name,
                "runs": [run.path.name for run in runs],
            },
            sort_keys=True,
        ).encode()
        temporary = self._new(CURRENT)
        _write_synced(temporary, text + b"\n" + blake3(text).hexdigest().encode())
        system.replace_file(temporary, self.directory / CURRENT)
        system.sync_directory(self.directory)  # before the files that the former one names go
        self.state = CacheState(generation, tuple(runs), tuple(dead), names, path.name)
        self.sweep()

    def _new(self, kind: str) -> Path:
        return self.directory / f"{kind}-{os.urandom(8).hex()}"


def dead_places(run: Run, flags: bytes) -> int:
    """How many records of a run are in dead packs."""
    return sum(run.pack(number)[2] for number, flag in enumerate(flags) if flag)


def revived(run: Run, flags: bytes, alive: Collection[int]) -> bytes:
    """The dead flags of a run's packs when these editions live after all."""
    if not flags:
        return flags
    return bytes(flag and run.pack(number)[3] not in alive for number, flag in enumerate(flags))


def to_merge(sizes: Sequence[int], dead: Sequence[int]) -> set[int]:
    """Numbers of the runs that are worth merging into one, by their records; a single one only to get rid
    of its dead.
    """
    order = sorted(range(len(sizes)), key=lambda number: sizes[number])
    chosen: list[int] = []
    total = 0
    for position, number in enumerate(order):
        left = len(order) - position
        if chosen and sizes[number] > MERGE_FACTOR * total and left + 1 <= MAX_RUNS:
            break
        chosen.append(number)
        total += sizes[number]
    rotten = {n for n, size in enumerate(sizes) if dead[n] * DEAD_SHARE > size}
    if len(chosen) > 1 and len(sizes) > 1:
        return set(chosen) | rotten
    return rotten


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value


def _write_synced(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | system.OPEN_FLAGS, FILE_MODE)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
