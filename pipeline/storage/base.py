"""What a repository asks of the place where its objects are.

An object is a name and bytes. Names are relative, slash-separated, of the characters a-z 0-9 . - and _
in each part, no part beginning with a dot. An object is never changed in part. `pipeline.testing.contract` has the suite that
every driver must pass. Drivers translate the errors of what they rest on into `pipeline.errors` and
never retry by themselves; retry, throttle and counting are wrappers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

OBJECT_NAME: Final = re.compile(r"[a-z0-9_-][a-z0-9._-]*(/[a-z0-9_-][a-z0-9._-]*)*")

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """One object as a listing tells it."""

    name: str
    size_bytes: int
    modified_at_s: float
    """Unix time by the clock of the storage; when the object became visible."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    free_bytes: int
    """What this user may still write."""
    total_bytes: int
    used_bytes: int
    """Of the whole storage, not of this repository alone."""


class ObjectWriter(Protocol):
    """An object that is being written; nobody else sees it before commit(). Used by one thread at a time."""

    def write(self, parts: Sequence[Buffer]) -> None:
        """Append all parts in order. MUST take them whole or raise; MUST NOT keep a buffer after it
        returns. After an exception the writer MUST only be aborted.
        """

    def commit(self) -> None:
        """Make the object visible under its name, whole and durable: a power cut after commit()
        returned MUST find it. Raises ObjectExistsError when the name is taken (then nothing changed).
        Used once.
        """

    def abort(self) -> None:
        """Drop everything written and free its space. MAY be called twice, and after commit(), where
        it does nothing; MUST NOT raise for a storage that is gone.
        """


class Retention(Protocol):
    """Immutability: objects that the storage lets nobody change or delete before a time.

    Who holds what opens the storage MUST NOT be able to shorten it.
    """

    def keep(self, name: str, until_s: float) -> None:
        """Make the object undeletable until that Unix time; a later time that it has stays. Raises
        ObjectNotFoundError, StoragePermissionError.
        """

    def kept_until_s(self, name: str) -> float:
        """Until when the object cannot be deleted; 0.0 when it can. Raises ObjectNotFoundError."""


class Storage(Protocol):
    """Objects under one place. Every method MAY be called from any thread at any time.

    Errors: StorageFullError, StoragePermissionError and StorageMissingError are permanent,
    StorageUnavailableError is transient; ObjectNotFoundError and ObjectExistsError as named below.
    A name that breaks the rules is a ValueError.
    """

    @property
    def location(self) -> str:
        """For messages: where this is."""

    @property
    def retention(self) -> Retention | None:
        """Immutability of this storage; None where it has none."""

    def create(self, name: str) -> ObjectWriter:
        """Begin an object. MAY raise ObjectExistsError at once when the name is taken; the one in
        commit() decides.
        """

    def put(self, name: str, data: Buffer) -> None:
        """Store an object that does not exist yet. All or nothing; durable when it returns. Of two at
        once with the same name exactly one MUST succeed, the other MUST raise ObjectExistsError.
        """

    def replace(self, name: str, data: Buffer) -> None:
        """Store an object whether it exists or not. Readers MUST see the old or the new one, whole;
        durable when it returns.
        """

    def read(self, name: str) -> bytes:
        """The whole object. Raises ObjectNotFoundError."""

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`. Raises ObjectNotFoundError, and IntegrityError when
        the object ends before.
        """

    def size_bytes(self, name: str) -> int:
        """Size of the object. Raises ObjectNotFoundError."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Every committed object whose name begins with `prefix` (empty, or ending in a slash),
        ascending by name, each once. An object that appears or goes meanwhile MAY be in it or not.
        What is being written MUST NOT be.
        """

    def delete(self, name: str) -> None:
        """Remove an object; durable when it returns. One that does not exist is no error. Raises
        ObjectRetainedError for one that is kept, also where the storage would only hide it.
        """

    def clean(self, older_than_s: float) -> int:
        """Remove what writers that died left behind, last touched before that Unix time; returns the
        bytes freed.
        """

    def space(self) -> Space: ...

    def close(self) -> None:
        """MAY be called twice. Nothing else may be called afterwards."""


def checked_name(name: str) -> str:
    """The name, when it keeps to the rules. Raises ValueError."""
    if not OBJECT_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name of a storage object")
    return name
