"""Storage that may fail for a moment: the same calls, repeated with pauses until they are answered.

A wrapper for drivers whose storage is reached over a network. Only StorageUnavailableError is repeated;
every other error is an answer. A call whose answer was lost may have had its effect: `put` and `commit`
therefore look, when the name is taken on a later try, whether what is there is what they wrote.

Memory: an object that is being written is kept until it is committed, so that it can be sent once more.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Final, TypeVar

from pipeline.errors import CancelledError, ObjectExistsError, StorageUnavailableError
from pipeline.storage.base import Buffer, ObjectWriter, Retention, Space, Storage, StoredObject

PATIENCE_S: Final = 120.0
"""From the first failure of a call to giving up, when nothing of it succeeds in between."""
FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 20.0
MAX_KEPT_BYTES: Final = 256 << 20
"""A larger object that is being written is not kept for repeating: packs are closed at a quarter of this."""
_COMPARE_BYTES: Final = 8 << 20

Wait = Callable[[float], None]
"""Waits so many seconds; raises CancelledError to give up."""
T = TypeVar("T")


def wait_for(cancel: threading.Event | None, what: str) -> Wait:
    """Pauses that end at once, with CancelledError, when `cancel` is set."""
    event = cancel or threading.Event()

    def wait(pause_s: float) -> None:
        if event.wait(pause_s):
            raise CancelledError(f"waiting for {what} was cancelled")

    return wait


class _Patience:
    def __init__(self, wait: Wait, clock: Callable[[], float], patience_s: float) -> None:
        self._wait = wait
        self._clock = clock
        self._patience_s = patience_s
        self._failures = 0
        self._paused_s = 0.0
        self._first_s = 0.0

    def progressed(self) -> None:
        self._failures = 0
        self._paused_s = 0.0

    def failed(self, error: StorageUnavailableError) -> None:
        now_s = self._clock()
        if self._failures == 0:
            self._first_s = now_s
        self._failures += 1
        # Both are counted: a clock may stand still, and a call may take long to fail.
        if max(self._paused_s, now_s - self._first_s) >= self._patience_s:
            raise error
        longest_s = min(FIRST_PAUSE_S * 2.0 ** (self._failures - 1), LONGEST_PAUSE_S)
        # Half of it at random, so that many proxies do not come back at the same moment.
        pause_s = longest_s * (0.5 + random.random() / 2)  # noqa: S311 - no secret
        self._paused_s += pause_s
        self._wait(pause_s)


class RetryingStorage:
    """See the module's text. Gives up a call after `patience_s` with the driver's last error."""

    def __init__(
        self,
        inner: Storage,
        *,
        wait: Wait | None = None,
        clock: Callable[[], float] = monotonic,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.inner: Final = inner
        self._wait = wait or wait_for(None, inner.location)
        self._clock = clock
        self._patience_s = patience_s

    @property
    def location(self) -> str:
        return self.inner.location

    @property
    def retention(self) -> Retention | None:
        inner = self.inner.retention
        return None if inner is None else _RetryingRetention(self, inner)

    def create(self, name: str) -> ObjectWriter:
        return _RetryingWriter(self, name)

    def put(self, name: str, data: Buffer) -> None:
        patience = self.patience()
        is_doubtful = False
        while True:
            try:
                self.inner.put(name, data)
            except StorageUnavailableError as error:
                is_doubtful = True
                patience.failed(error)
            except ObjectExistsError:
                if is_doubtful and self.holds(name, [data]):
                    return
                raise
            else:
                return

    def replace(self, name: str, data: Buffer) -> None:
        self.repeated(lambda: self.inner.replace(name, data))

    def read(self, name: str) -> bytes:
        return self.repeated(lambda: self.inner.read(name))

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        def whole() -> bytes:
            data = self.inner.read_range(name, offset, length)
            if len(data) != length:
                raise StorageUnavailableError(
                    f"{self.location} gave {len(data)} of {length} bytes of {name}; the connection broke"
                )
            return data

        return self.repeated(whole)

    def size_bytes(self, name: str) -> int:
        return self.repeated(lambda: self.inner.size_bytes(name))

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """A listing that breaks off is begun again and goes on after the last name that was given."""
        return self._listed(self.repeated(lambda: self.inner.list(prefix)), prefix)

    def _listed(self, entries: Iterator[StoredObject], prefix: str) -> Iterator[StoredObject]:
        patience = self.patience()
        last = ""
        while True:
            try:
                for entry in entries:
                    if entry.name > last:
                        last = entry.name
                        patience.progressed()
                        yield entry
            except StorageUnavailableError as error:
                patience.failed(error)
                entries = self.repeated(lambda: self.inner.list(prefix))
            else:
                return

    def delete(self, name: str) -> None:
        self.repeated(lambda: self.inner.delete(name))

    def clean(self, older_than_s: float) -> int:
        return self.repeated(lambda: self.inner.clean(older_than_s))

    def space(self) -> Space:
        return self.repeated(self.inner.space)

    def close(self) -> None:
        self.inner.close()

    # ---- for the parts below ---------------------------------------------------------------------

    def patience(self) -> _Patience:
        """For one call."""
        return _Patience(self._wait, self._clock, self._patience_s)

    def repeated(self, call: Callable[[], T]) -> T:
        """The answer of a call that may be made twice."""
        patience = self.patience()
        while True:
            try:
                return call()
            except StorageUnavailableError as error:
                patience.failed(error)

    def holds(self, name: str, parts: Sequence[Buffer]) -> bool:
        """The object is there and is exactly these bytes."""
        if self.size_bytes(name) != sum(map(len, parts)):
            return False
        offset = 0
        for part in parts:
            view = memoryview(part)
            for at in range(0, len(view), _COMPARE_BYTES):
                piece = view[at : at + _COMPARE_BYTES]
                if self.read_range(name, offset + at, len(piece)) != piece:
                    return False
            offset += len(view)
        return True


class _RetryingWriter:
    """Keeps what was written, and writes it once more into a new object of the driver after a failure."""

    def __init__(self, storage: RetryingStorage, name: str) -> None:
        self._storage = storage
        self._name = name
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._is_kept = True
        self._inner: ObjectWriter | None = storage.repeated(lambda: storage.inner.create(name))

    def write(self, parts: Sequence[Buffer]) -> None:
        copies = [bytes(part) for part in parts if len(part)]
        self._keep(copies)
        if self._inner is None:
            return  # already broken; what comes is kept until commit()
        try:
            self._inner.write(copies)
        except StorageUnavailableError:
            self._drop()
            if not self._is_kept:
                raise

    def _keep(self, copies: list[bytes]) -> None:
        self._kept_bytes += sum(map(len, copies))
        if self._kept_bytes > MAX_KEPT_BYTES:
            self._is_kept = False
            self._kept.clear()
        if self._is_kept:
            self._kept.extend(copies)

    def commit(self) -> None:
        patience = self._storage.patience()
        is_doubtful = False
        while True:
            try:
                self._attempt()
            except StorageUnavailableError as error:
                self._drop()
                if not self._is_kept:
                    raise
                is_doubtful = True
                patience.failed(error)
            except ObjectExistsError:
                self._drop()
                if not (is_doubtful and self._storage.holds(self._name, self._kept)):
                    raise
                break
            else:
                break
        self._kept.clear()
        self._inner = None

    def _attempt(self) -> None:
        """Commit what the driver has; all over again when its writer broke."""
        if self._inner is None:
            self._inner = self._storage.inner.create(self._name)
            self._inner.write(self._kept)
        self._inner.commit()

    def abort(self) -> None:
        self._kept.clear()
        self._drop()

    def _drop(self) -> None:
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.abort()


class _RetryingRetention:
    def __init__(self, storage: RetryingStorage, inner: Retention) -> None:
        self._storage = storage
        self._inner = inner

    def keep(self, name: str, until_s: float) -> None:
        self._storage.repeated(lambda: self._inner.keep(name, until_s))

    def kept_until_s(self, name: str) -> float:
        return self._storage.repeated(lambda: self._inner.kept_until_s(name))
