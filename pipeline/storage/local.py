"""A directory as storage: a local disk, or whatever is mounted there.

Objects are files. A new one is written under `tmp/`, synced, linked to its name (which fails when the
name is taken) and the directory is synced. All paths are relative to a descriptor of the root that is
opened once, so that a mount that goes away takes its storage with it: nothing is ever written to the
empty directory below.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from uuid import uuid4

from pipeline.errors import (
    IntegrityError,
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectRetainedError,
    PermanentPipelineError,
    PipelineError,
    StorageFullError,
    StorageMissingError,
    StoragePermissionError,
    StorageUnavailableError,
)
from pipeline.storage.base import Buffer, ObjectWriter, Retention, Space, StoredObject, checked_name
from pipeline.storage.immutable import KeeperRetention, is_immutable
from pipeline.storage.writeback import start_writeback

TEMPORARY_DIRECTORY: Final = "tmp"
_NOT_FOREIGN: Final = frozenset({TEMPORARY_DIRECTORY, "keys", "lost+found"})
FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700
WRITEBACK_BYTES: Final = 8 << 20
"""Of a large object, so much at a time is handed to the disk while the rest is still being made."""
MAX_IOV_PARTS: Final = 512  # below IOV_MAX, which is 1024 on Linux
NO_HARD_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class translated_os_errors:  # noqa: N801 - used as a statement
    """Turns OSError into the package's errors, naming what was done and where."""

    __slots__ = ("_doing", "_where")

    def __init__(self, doing: str, where: str) -> None:
        self._doing = doing
        self._where = where

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            raise translate(error, self._doing, self._where) from error


def translate(error: OSError, doing: str, where: str) -> PipelineError:
    """The package's error for one of the operating system."""
    what = f"{doing} in {where}: {error.strerror or error}"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return StorageFullError(f"{what}; free space or enlarge the disk, then run again")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return StoragePermissionError(f"{what}; give this user write access to the directory")
        case errno.ENOENT:
            return ObjectNotFoundError(f"{what}; the object is missing from the storage")
        case errno.EEXIST:
            return ObjectExistsError(f"{what}; objects are never replaced")
        case errno.ENOTCONN | errno.ENODEV:
            return StorageMissingError(f"{what}; is the file system still mounted?")
        case _:
            return StorageUnavailableError(f"{what}; look at the disk or the mount, then run again")


class LocalStorage:
    """Storage in a directory; see the module's text."""

    def __init__(self, path: str | os.PathLike[str], *, create: bool = False, keeper: str = "") -> None:
        """Open the directory; `create` makes its last part (never its parents: a mistyped mount
        point must not become a repository). `keeper`: socket of the program that makes objects immutable.
        Raises StorageMissingError.
        """
        self._path = Path(path)
        self._retention = KeeperRetention(keeper, str(self._path)) if keeper else None
        if create:
            _refuse_foreign(self._path)
            with (
                contextlib.suppress(FileExistsError),
                translated_missing(self._path, "its parent directory does not exist"),
            ):
                self._path.mkdir(mode=DIRECTORY_MODE)
            with translated_missing(self._path, "its parent directory does not exist"):
                _sync_path(self._path.parent)
        with translated_missing(self._path, "create the directory or mount it"):
            self._root = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._lock = threading.Lock()
        self._known_directories: set[str] = set()

    @property
    def location(self) -> str:
        return str(self._path)

    @property
    def retention(self) -> Retention | None:
        return self._retention

    def create(self, name: str) -> ObjectWriter:
        checked_name(name)
        if self._exists(name):
            raise ObjectExistsError(f"{name} exists already in {self.location}")
        return LocalObjectWriter(self, name)

    def put(self, name: str, data: Buffer) -> None:
        writer = self.create(name)
        try:
            writer.write([data])
            writer.commit()
        finally:
            writer.abort()

    def replace(self, name: str, data: Buffer) -> None:
        writer = LocalObjectWriter(self, checked_name(name))
        try:
            writer.write([data])
            writer.commit_over()
        finally:
            writer.abort()

    def read(self, name: str) -> bytes:
        with self._opened(name) as fd:
            return self._read_exactly(fd, name, 0, os.fstat(fd).st_size)

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        with self._opened(name) as fd:
            return self._read_exactly(fd, name, offset, length)

    def size_bytes(self, name: str) -> int:
        with translated_os_errors(f"looking at {checked_name(name)}", self.location):
            return os.stat(name, dir_fd=self._root, follow_symlinks=False).st_size

    def list(self, prefix: str) -> Iterator[StoredObject]:
        if prefix and (not prefix.endswith("/") or not checked_name(prefix[:-1])):
            raise ValueError(f"{prefix!r} is not a prefix that ends in a slash")
        return self._walk(prefix)

    def delete(self, name: str) -> None:
        with translated_os_errors(f"deleting {checked_name(name)}", self.location):
            try:
                self._unlink(name)
            except FileNotFoundError:
                return
            self._sync_directory(parent_of(name))

    def _unlink(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._root)
        except PermissionError:
            if not self._is_immutable(name):
                raise
            if self._retention is not None:
                # Its time may be over, and the keeper's next round still to come.
                with contextlib.suppress(StoragePermissionError, StorageUnavailableError):
                    self._retention.release_due()
            if self._is_immutable(name):
                raise _retained(name, self.location) from None
            os.unlink(name, dir_fd=self._root)

    def _is_immutable(self, name: str) -> bool:
        try:
            with self._opened(name) as fd:
                return is_immutable(fd)
        except ObjectNotFoundError:
            return False

    def clean(self, older_than_s: float) -> int:
        freed_bytes = 0
        for entry in self._walk(TEMPORARY_DIRECTORY + "/", temporary=True):
            if entry.modified_at_s < older_than_s:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.name, dir_fd=self._root)
                    freed_bytes += entry.size_bytes
        return freed_bytes

    def space(self) -> Space:
        self._require_in_place()
        with translated_os_errors("asking for free space", self.location):
            answer = os.fstatvfs(self._root)
        total = answer.f_blocks * answer.f_frsize
        return Space(
            free_bytes=answer.f_bavail * answer.f_frsize,
            total_bytes=total,
            used_bytes=total - answer.f_bfree * answer.f_frsize,
        )

    def _require_in_place(self) -> None:
        """StorageMissingError when the path has come to mean something else than what was opened.

        An open directory outlives its name, so that what was begun can be ended. Whoever asks for the
        space wants to know of the place that the next one opens.
        """
        with translated_missing(self._path, "create the directory or mount it"):
            there = self._path.stat()
        ours = os.fstat(self._root)
        if (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            raise StorageMissingError(
                f"directory {self._path} is not the one that was opened: something else was mounted or "
                "moved there; bring the repository's directory back"
            )

    def close(self) -> None:
        with self._lock:
            root, self._root = self._root, -1
        if root >= 0:
            os.close(root)
        if self._retention is not None:
            self._retention.close()

    # ---- for the object writer ---------------------------------------------------------------

    def open_temporary(self) -> tuple[str, int]:
        self._make_directory(TEMPORARY_DIRECTORY)
        name = f"{TEMPORARY_DIRECTORY}/{uuid4().hex}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return name, os.open(name, flags, FILE_MODE, dir_fd=self._root)

    def publish(self, temporary: str, name: str, *, over: bool) -> None:
        directory = parent_of(name)
        self._make_directory(directory)
        if over:
            try:
                os.rename(temporary, name, src_dir_fd=self._root, dst_dir_fd=self._root)
            except PermissionError:
                if self._is_immutable(name):
                    raise _retained(name, self.location) from None
                raise
        else:
            self._link(temporary, name)
        self._sync_directory(directory)

    def remove_temporary(self, temporary: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=self._root)

    # ---- inside ------------------------------------------------------------------------------

    def _link(self, temporary: str, name: str) -> None:
        try:
            os.link(temporary, name, src_dir_fd=self._root, dst_dir_fd=self._root)
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            # A file system without hard links. Between the look and the rename another writer could
            # come; names are random or chosen by one server, so the window is harmless there.
            if self._exists(name):
                raise FileExistsError(errno.EEXIST, "name is taken", name) from error
            os.rename(temporary, name, src_dir_fd=self._root, dst_dir_fd=self._root)

    def _exists(self, name: str) -> bool:
        with translated_os_errors(f"looking at {name}", self.location):
            try:
                os.stat(name, dir_fd=self._root, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        checked_name(name)
        with translated_os_errors(f"reading {name}", self.location):
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._root)
            try:
                yield fd
            finally:
                os.close(fd)

    def _read_exactly(self, fd: int, name: str, offset: int, length: int) -> bytes:
        data = os.pread(fd, length, offset)
        if len(data) == length:
            return data
        parts = [data]
        done = len(data)
        while done < length:
            part = os.pread(fd, length - done, offset + done)
            if not part:
                raise IntegrityError(
                    f"{name} in {self.location} ends at {offset + done}, before {offset + length}; "
                    "it is truncated: run a check of the repository"
                )
            parts.append(part)
            done += len(part)
        return b"".join(parts)

    def _walk(self, prefix: str, *, temporary: bool = False) -> Iterator[StoredObject]:
        with translated_os_errors(f"listing {prefix or 'everything'}", self.location):
            try:
                fd = os.open(prefix or ".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._root)
            except FileNotFoundError:
                return
            try:
                names = os.listdir(fd)  # noqa: PTH208 - of a descriptor, not a path
            finally:
                os.close(fd)
        # A directory is sorted with its slash, so that the listing ascends across directories.
        entries = []
        for short in names:
            if not prefix and short == TEMPORARY_DIRECTORY and not temporary:
                continue
            try:
                facts = os.stat(prefix + short, dir_fd=self._root, follow_symlinks=False)
            except FileNotFoundError:
                continue
            is_directory = stat.S_ISDIR(facts.st_mode)
            entries.append((short + "/" if is_directory else short, is_directory, facts))
        for short, is_directory, facts in sorted(entries, key=lambda entry: entry[0]):
            if is_directory:
                yield from self._walk(prefix + short, temporary=temporary)
            elif stat.S_ISREG(facts.st_mode):
                yield StoredObject(
                    name=prefix + short, size_bytes=facts.st_size, modified_at_s=facts.st_mtime
                )

    def _make_directory(self, directory: str) -> None:
        if not directory or directory in self._known_directories:
            return
        parent = parent_of(directory)
        self._make_directory(parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, DIRECTORY_MODE, dir_fd=self._root)
        # Also when it was there: who made it may have died, or not have come so far, before its sync.
        self._sync_directory(parent)
        self._known_directories.add(directory)

    def _sync_directory(self, directory: str) -> None:
        fd = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._root)
        try:
            sync_directory(fd)
        finally:
            os.close(fd)


class LocalObjectWriter:
    """A file under tmp/ until it is committed."""

    def __init__(self, storage: LocalStorage, name: str) -> None:
        self._storage = storage
        self._name = name
        self._fd = -1
        self._written_bytes = 0
        self._on_its_way_bytes = 0
        with translated_os_errors(f"beginning {name}", storage.location):
            self._temporary, self._fd = storage.open_temporary()

    def write(self, parts: Sequence[Buffer]) -> None:
        views = [memoryview(part) for part in parts if len(part)]
        with translated_os_errors(f"writing {self._name}", self._storage.location):
            while views:
                written = os.writev(self._fd, views[:MAX_IOV_PARTS])
                views = without_first_bytes(views, written)
                self._written_bytes += written
        fresh_bytes = self._written_bytes - self._on_its_way_bytes
        if fresh_bytes >= WRITEBACK_BYTES:
            start_writeback(self._fd, self._on_its_way_bytes, fresh_bytes)
            self._on_its_way_bytes = self._written_bytes

    def commit(self) -> None:
        self._publish(over=False)

    def commit_over(self) -> None:
        """As commit(), but in the place of an object that has the name."""
        self._publish(over=True)

    def abort(self) -> None:
        self._close()
        self._storage.remove_temporary(self._temporary)

    def _publish(self, *, over: bool) -> None:
        with translated_os_errors(f"committing {self._name}", self._storage.location):
            os.fsync(self._fd)
            self._storage.publish(self._temporary, self._name, over=over)
        self._close()
        self._storage.remove_temporary(self._temporary)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)


def _sync_path(path: Path) -> None:
    """Make the names in a directory durable, where this user may and the file system can."""
    with contextlib.suppress(PermissionError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_directory(fd)
        finally:
            os.close(fd)


def sync_directory(fd: int) -> None:
    """Make the names in an open directory durable."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EBADF}:  # file systems that cannot sync one
            raise


def _retained(name: str, location: str) -> ObjectRetainedError:
    return ObjectRetainedError(
        f"{name} in {location} is immutable; it can be deleted when the time for which it is kept is over"
    )


def parent_of(name: str) -> str:
    """The directory part of an object's name; empty at the top."""
    return name.rpartition("/")[0]


def without_first_bytes(views: list[memoryview], count: int) -> list[memoryview]:
    """What is left of `views` after `count` bytes."""
    for position, view in enumerate(views):
        if count < len(view):
            return [view[count:], *views[position + 1 :]]
        count -= len(view)
    return []


def _refuse_foreign(path: Path) -> None:
    """PermanentPipelineError when a directory that is to become a storage holds somebody's files.

    What is a repository already is refused with better words by whoever knows its format. Ours, of a creation that was cut off, do not count; hidden ones neither: snapshots of the file
    system, settings of the volume.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(path))
    except OSError:
        return  # not there yet, or about to be complained about by whoever opens it
    foreign = [name for name in names if not name.startswith(".") and name not in _NOT_FOREIGN]
    if foreign and not any(name.startswith("vmhaul-") for name in names):
        raise PermanentPipelineError(
            f"directory {path} is not empty: it holds {foreign[0]!r}"
            f"{f' and {len(foreign) - 1} more' if len(foreign) > 1 else ''}; choose an empty or a new one"
        )


@contextlib.contextmanager
def translated_missing(path: Path, advice: str) -> Iterator[None]:
    """Errors of opening the place itself."""
    try:
        yield
    except FileExistsError:
        raise
    except PermissionError as error:
        raise StoragePermissionError(
            f"directory {path} is not open to this user: {error.strerror}; give it access"
        ) from error
    except OSError as error:
        raise StorageMissingError(f"directory {path}: {error.strerror}; {advice}") from error
