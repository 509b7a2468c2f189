"""vmhaul-keeper: makes objects of a repository in a local directory immutable until a time.

It runs as root, beside proxies that do not. They may ask for two things over a Unix socket:

- `keep` an object until a time: it gets the immutable attribute, and the time is written to a journal that
  only root can change. A later time replaces an earlier one, never the other way round.
- `release` what is due, by this program's own clock. Nothing that a client says makes anything due.

There is no request that unlocks. What is kept is a file, not a name: who owns the directories may rename
them, and then give a kept file another name, or its name to another file. So the journal has each file's
number (inode), what is immutable already is kept by its first name only, and nothing is released that is not
the file that was kept.

Here is what is done to files; `keeper_server` has the socket and the command line. Both need Python's
standard library and nothing else of vmhaul.

The clock. Time passes here as the machine's monotonic clock says, from where the wall clock stood when it
was last trusted. A wall clock that runs ahead of that by more than an hour, or that moved by more than
--max-gap-days while the program did not run, stops every release until root says
`vmhaul-keeper confirm-clock`. Being late only keeps things longer.
"""

from __future__ import annotations

import fcntl
import os
import re
import sqlite3
import stat
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

GET_FLAGS: Final = 0x80086601  # FS_IOC_GETFLAGS, FS_IOC_SETFLAGS and FS_IMMUTABLE_FL of linux/fs.h
SET_FLAGS: Final = 0x40086602
IMMUTABLE: Final = 0x10
# Names as vmhaul gives them; work/ and doomed/ are replaced by design, tmp/ is not an object.
NAME: Final = re.compile(r"[a-z0-9_-][a-z0-9._-]*(/[a-z0-9_-][a-z0-9._-]*){0,3}")
NEVER_KEPT: Final = ("tmp", "work", "doomed")
MAX_AHEAD_S: Final = 3600.0
DAY_S: Final = 86400.0


class Refused(Exception):  # noqa: N818 - it is an answer
    """What was asked for is not done; the text is for the client."""


class Missing(Exception):  # noqa: N818 - it is an answer
    """No object of this name."""


class Journal:
    """What is kept until when, and what the clock was. A SQLite file that only root can open."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        self._db = sqlite3.connect(
            directory / "journal.sqlite", isolation_level=None, check_same_thread=False
        )
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS kept "
            "(root TEXT, name TEXT, until REAL, inode INTEGER, PRIMARY KEY (root, name)) WITHOUT ROWID"
        )
        self._db.execute("CREATE INDEX IF NOT EXISTS by_time ON kept (until)")
        self._db.execute("CREATE INDEX IF NOT EXISTS by_inode ON kept (inode)")
        self._db.execute("CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT)")

    def until(self, root: str, name: str) -> float:
        row = self._db.execute("SELECT until FROM kept WHERE root=? AND name=?", (root, name))
        found = row.fetchone()
        return float(found[0]) if found else 0.0

    def inode(self, root: str, name: str) -> int:
        """Of the file that is kept by this name; 0: none is."""
        row = self._db.execute("SELECT inode FROM kept WHERE root=? AND name=?", (root, name))
        found = row.fetchone()
        return int(found[0]) if found else 0

    def last_until(self, root: str, inode: int) -> float:
        """The latest time of that file, whatever it is called."""
        row = self._db.execute("SELECT max(until) FROM kept WHERE root=? AND inode=?", (root, inode))
        return float(row.fetchone()[0] or 0.0)

    def keep(self, root: str, name: str, until: float, inode: int) -> None:
        self._db.execute(
            "INSERT INTO kept VALUES (?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET until = max(until, excluded.until), inode = excluded.inode",
            (root, name, until, inode),
        )

    def kept(self) -> list[tuple[str, str, float]]:
        return self._db.execute("SELECT root, name, until FROM kept ORDER BY until").fetchall()

    def due(self, now: float) -> list[tuple[str, str, float]]:
        rows = self._db.execute("SELECT root, name, until FROM kept WHERE until <= ?", (now,))
        return rows.fetchall()

    def forget(self, root: str, name: str) -> None:
        self._db.execute("DELETE FROM kept WHERE root=? AND name=?", (root, name))

    def fact(self, name: str) -> str:
        found = self._db.execute("SELECT value FROM facts WHERE name=?", (name,)).fetchone()
        return str(found[0]) if found else ""

    def note(self, **facts: object) -> None:
        self._db.execute("BEGIN")
        for name, value in facts.items():
            self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, str(value)))
        self._db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()


class Clock:
    """The time by which things become due; see the module's text."""

    def __init__(
        self,
        journal: Journal,
        max_gap_s: float,
        wall: Callable[[], float],
        passed: Callable[[], float],
        boot: str,
    ) -> None:
        self._journal = journal
        self._wall = wall
        self._passed = passed
        if journal.fact("confirmed"):
            journal.note(confirmed="", doubt="")
            self._trust(boot)
            return
        if journal.fact("boot") == boot:
            # The same boot: the monotonic clock went on while this program did not run.
            self._base_wall = float(journal.fact("wall"))
            self._base_passed = float(journal.fact("passed"))
            self.tick()
            return
        seen = float(journal.fact("seen") or 0.0)
        if seen and self._wall() > seen + max_gap_s:
            self._distrust(
                f"the clock is {(self._wall() - seen) / DAY_S:.1f} days after it was last seen"
            )
        self._trust(boot)

    def _trust(self, boot: str) -> None:
        self._base_wall, self._base_passed = self._wall(), self._passed()
        self._journal.note(
            boot=boot, wall=self._base_wall, passed=self._base_passed, seen=self._base_wall
        )

    def _distrust(self, why: str) -> None:
        if not self.doubt:
            self._journal.note(doubt=why)

    @property
    def doubt(self) -> str:
        """Why nothing is released; empty: it is."""
        return self._journal.fact("doubt")

    def now(self) -> float:
        """Never ahead of what has passed."""
        return min(self._wall(), self._base_wall + self._passed() - self._base_passed)

    def tick(self) -> None:
        """Look whether the wall clock was set forward."""
        ahead = self._wall() - (self._base_wall + self._passed() - self._base_passed)
        if ahead > MAX_AHEAD_S:
            self._distrust(f"the clock was set forward by {ahead:.0f} s")
        self._journal.note(seen=max(self.now(), float(self._journal.fact("seen") or 0.0)))


class Keeper:
    """Keeps and releases. Every call holds one lock: there is one journal and one truth."""

    def __init__(self, roots: Sequence[str], journal: Journal, clock: Clock, max_days: float) -> None:
        self._roots = frozenset(roots)
        self._journal = journal
        self._clock = clock
        self._max_s = max_days * DAY_S
        self._lock = threading.Lock()

    def recover(self) -> None:
        """After a crash between journal and attribute: what the journal names gets it."""
        with self._lock:
            for root, name, until in self._journal.kept():
                if until > self._clock.now():
                    try:
                        with self._opened(root, name) as fd:
                            self._keep(fd, root, name, until)
                    except (Missing, Refused, OSError) as error:
                        print(f"{root}/{name} cannot be kept: {error}", file=sys.stderr)  # noqa: T201

    def keep(self, root: str, name: str, until: float) -> float:
        with self._lock:
            if until > self._clock.now() + self._max_s:
                raise Refused(f"{self._max_s / DAY_S:.0f} days is the longest that is kept")
            with self._opened(root, name) as fd:
                if not supports_flags(fd):
                    raise Refused(f"the file system of {root} has no immutable attribute")
                self._keep(fd, root, name, until)
            return self._journal.until(root, name)

    def _keep(self, fd: int, root: str, name: str, until: float) -> None:
        inode = os.fstat(fd).st_ino
        if is_immutable(fd) and self._journal.inode(root, name) != inode:
            raise Refused(
                f"{name} in {root} is immutable already, and was not kept by this name. Was a directory "
                "renamed, or the keeper's journal lost?"
            )
        self._journal.keep(root, name, until, inode)
        set_immutable(fd, on=True)

    def until(self, root: str, name: str) -> float:
        with self._lock, self._opened(root, name) as fd:
            is_it = self._journal.inode(root, name) == os.fstat(fd).st_ino
            return self._journal.until(root, name) if is_it else 0.0

    def release(self) -> int:
        """Take the attribute off what is due; how many."""
        with self._lock:
            self._clock.tick()
            if self._clock.doubt:
                raise Refused(
                    f"nothing is released: {self._clock.doubt}. When the clock is right, let root say "
                    "`vmhaul-keeper confirm-clock`"
                )
            released = 0
            for root, name, _ in self._journal.due(self._clock.now()):
                try:
                    with self._opened(root, name) as fd:
                        self._release(fd, root, name)
                except Missing:
                    if not is_repository(root):
                        continue  # its file system is not mounted
                    # Else root removed the object.
                except (Refused, OSError) as error:
                    print(f"{root}/{name} cannot be released: {error}", file=sys.stderr)  # noqa: T201
                    continue
                self._journal.forget(root, name)
                released += 1
            return released

    def _release(self, fd: int, root: str, name: str) -> None:
        if not is_immutable(fd):
            return  # a crash after the last release, or root put another file there
        inode = os.fstat(fd).st_ino
        if inode != self._journal.inode(root, name):
            raise Refused("it is not the file that was kept by this name")
        if self._journal.last_until(root, inode) > self._clock.now():
            raise Refused("it is kept by another name for longer")
        set_immutable(fd, on=False)

    @contextmanager
    def _opened(self, root: str, name: str) -> Iterator[int]:
        """The object's file, reached without following a link and without leaving its file system."""
        if root not in self._roots:
            raise Refused(f"{root!r} is no repository of this keeper")
        if not NAME.fullmatch(name) or name.split("/", maxsplit=1)[0] in NEVER_KEPT:
            raise Refused(f"{name!r} is not the name of an object that may be kept")
        *directories, last = name.split("/")
        fds: list[int] = []
        try:
            fds.append(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
            device = os.fstat(fds[0]).st_dev
            for part in directories:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                fds.append(os.open(part, flags, dir_fd=fds[-1]))
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fds.append(os.open(last, flags, dir_fd=fds[-1]))
            facts = os.fstat(fds[-1])
            # A second name could be a file outside of the repository that somebody linked in.
            if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1 or facts.st_dev != device:
                raise Refused(f"{name} is not a plain file with one name in {root}")
            yield fds[-1]
        except FileNotFoundError as error:
            raise Missing(f"no {name} in {root}") from error
        except OSError as error:
            raise Refused(f"{name} in {root}: {error.strerror}") from error
        finally:
            for fd in fds:
                os.close(fd)


def is_repository(root: str) -> bool:
    return os.path.lexists(os.path.join(root, "vmhaul-repository.json"))  # noqa: PTH118 - plain paths


def supports_flags(fd: int) -> bool:
    try:
        fcntl.ioctl(fd, GET_FLAGS, bytes(8))
    except OSError:
        return False
    return True


def is_immutable(fd: int) -> bool:
    (flags,) = struct.unpack("@l", fcntl.ioctl(fd, GET_FLAGS, bytes(8)))
    return bool(flags & IMMUTABLE)


def set_immutable(fd: int, *, on: bool) -> None:
    (flags,) = struct.unpack("@l", fcntl.ioctl(fd, GET_FLAGS, bytes(8)))
    fcntl.ioctl(fd, SET_FLAGS, struct.pack("@l", flags | IMMUTABLE if on else flags & ~IMMUTABLE))
    os.fsync(fd)
