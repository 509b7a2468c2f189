"""What a disk may hold after the power was lost.

A Recorder takes the place of `os` in a driver and writes down what was asked of the file system. From that
the states are made that the loss may leave after any call: what was synced is there; of what was not, any
part may be. A file's bytes are safe after its fsync, an entry of a directory (a name that was linked,
renamed, removed, a directory that was made) after the fsync of that directory, and no sooner. Real file
systems promise more; nothing here relies on that.
"""

from __future__ import annotations

import os
import random
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

UNKNOWN: Final = frozenset(
    [
        "copy_file_range",
        "fallocate",
        "fdatasync",
        "ftruncate",
        "makedirs",
        "posix_fallocate",
        "pwrite",
        "pwritev",
        "remove",
        "removedirs",
        "removexattr",
        "renames",
        "replace",
        "rmdir",
        "sendfile",
        "setxattr",
        "symlink",
        "truncate",
        "write",
    ]
)
"""Calls that change a file system and that are not written down here."""
OUTSIDE: Final = "/"  # opened by its path: the place itself, or what is above it
SCRATCH: Final = "tmp"
"""The directory of what has no name yet: what is lost there counts for nothing."""
DIRECTORY: Final = object()
REMOVED: Final = object()


@dataclass(eq=False, slots=True)
class File:
    """Content of a file, by the number of the call that wrote it."""

    writes: list[tuple[int, bytes]] = field(default_factory=list)
    syncs: list[int] = field(default_factory=list)

    def after(self, calls: int, rng: random.Random) -> bytes:
        """What may be in it when the power goes after so many calls."""
        synced_at = max((at for at in self.syncs if at < calls), default=-1)
        safe = b"".join(data for at, data in self.writes if at < synced_at)
        loose = b"".join(data for at, data in self.writes if synced_at <= at < calls)
        match rng.randrange(4):
            case 0:
                return safe
            case 1:  # the length came to the disk before the bytes
                return safe + bytes(len(loose))
            case 2:
                return safe + loose[: len(loose) // 2]
            case _:
                return safe + loose


@dataclass(frozen=True, slots=True)
class Entry:
    """A change of one name in a directory."""

    at: int
    directory: str
    name: str
    becomes: Any
    """A File, DIRECTORY, REMOVED."""


class Recorder:
    """Stands for the module `os`. Calls of several threads are made one after the other."""

    def __init__(self, *, forget_syncs_of: str = "") -> None:
        """`forget_syncs_of`: "file" or "directory": as if the driver did not sync those."""
        self._lock = threading.RLock()
        self._forgotten = forget_syncs_of
        self._open: dict[int, tuple[str, File | None]] = {}
        self._named: dict[str, File] = {}
        self.calls = 0
        self.entries: list[Entry] = []
        self.directory_syncs: list[tuple[int, str]] = []
        self.acknowledged: list[tuple[int, str]] = []

    def __getattr__(self, name: str) -> Any:
        if name in UNKNOWN:
            raise AssertionError(f"os.{name} changes files, and the model of a power loss lacks it")
        return getattr(os, name)

    def acknowledge(self, what: str) -> None:
        """The caller was told that this is done."""
        with self._lock:
            self.acknowledged.append((self.calls, what))

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        with self._lock:
            fd = os.open(path, flags, mode, dir_fd=dir_fd)
            inside = "" if path == "." else str(path).rstrip("/")
            name = OUTSIDE if dir_fd is None else inside
            if flags & os.O_CREAT:
                self._named[name] = File()
                self._enter(name, self._named[name])
            self._open[fd] = (name, self._named.get(name))
            return fd

    def close(self, fd: int) -> None:
        with self._lock:
            self._open.pop(fd, None)
            os.close(fd)

    def writev(self, fd: int, parts: Sequence[Any]) -> int:
        with self._lock:
            count = os.writev(fd, parts)
            file = self._open[fd][1]
            assert file is not None
            file.writes.append((self._next(), b"".join(parts)[:count]))
            return count

    def fsync(self, fd: int) -> None:
        with self._lock:
            os.fsync(fd)
            name, file = self._open[fd]
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                if self._forgotten != "directory":
                    self.directory_syncs.append((self._next(), name))
            elif self._forgotten != "file":
                assert file is not None
                file.syncs.append(self._next())

    def link(self, source: str, target: str, **where: int) -> None:
        with self._lock:
            os.link(source, target, **where)  # type: ignore[arg-type]
            self._named[target] = self._named[source]
            self._enter(target, self._named[source])

    def rename(self, source: str, target: str, **where: int) -> None:
        """One change of the target's directory: file systems do not tear a rename."""
        with self._lock:
            os.rename(source, target, **where)  # type: ignore[arg-type]  # noqa: PTH104 - descriptors
            self._named[target] = self._named.pop(source)
            self._enter(target, self._named[target])

    def unlink(self, path: str, *, dir_fd: int | None = None) -> None:
        with self._lock:
            os.unlink(path, dir_fd=dir_fd)
            self._named.pop(path, None)
            self._enter(path, REMOVED)

    def mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        with self._lock:
            os.mkdir(path, mode, dir_fd=dir_fd)
            if dir_fd is not None:
                self._enter(str(path), DIRECTORY)

    def _enter(self, name: str, becomes: Any) -> None:
        if _parent(name) == SCRATCH:
            self.calls += 1  # a moment like any other, and nobody misses the name
            return
        self.entries.append(Entry(self._next(), _parent(name), name, becomes))

    def _next(self) -> int:
        self.calls += 1
        return self.calls - 1

    # ---- what may be left ------------------------------------------------------------------------

    def told(self, calls: int) -> list[str]:
        """What had been acknowledged before the power went after so many calls."""
        return [what for at, what in self.acknowledged if at <= calls]

    def left_after(self, calls: int, rng: random.Random) -> Iterator[dict[str, bytes]]:
        """Files by name, for each of a choice of ways to lose what was not synced."""
        made = [entry for entry in self.entries if entry.at < calls]
        synced = {name: at for at, name in self.directory_syncs if at < calls}
        loose = [entry for entry in made if entry.at > synced.get(entry.directory, -1)]
        for lost in _choices(loose, rng):
            named: dict[str, Any] = {"": DIRECTORY}
            for entry in made:
                if entry not in lost:
                    named[entry.name] = entry.becomes
            yield {
                name: what.after(calls, rng)
                for name, what in named.items()
                if isinstance(what, File) and _is_reached(name, named)
            }


def _choices(loose: list[Entry], rng: random.Random) -> Iterator[set[Entry]]:
    """Which of the changes that were not synced are lost: none, all, each alone, all but each, some."""
    yield set()
    if loose:
        yield set(loose)
    if len(loose) > 1:
        for entry in loose:
            yield {entry}
            yield set(loose) - {entry}
        for _ in range(3):
            yield {entry for entry in loose if rng.random() < 0.5}


def _is_reached(name: str, named: dict[str, Any]) -> bool:
    directory = _parent(name)
    return directory == "" or (named.get(directory) is DIRECTORY and _is_reached(directory, named))


def _parent(name: str) -> str:
    return name.rpartition("/")[0]
