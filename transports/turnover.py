"""One writer that several threads share, and that any of them may find broken."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, Protocol

from transports.base import DiskWriter
from transports.errors import TransientTransportError

Act = Callable[[DiskWriter], None]


class WriterPool(Protocol):
    """What `Turnover` needs to know of its owner."""

    def replace(self, old: DiskWriter, error: Exception) -> DiskWriter:
        """Close `old`, which nobody uses any more, and answer one to go on with. Raises to give up."""


class Turnover:
    """Runs writes on the present writer. When one fails, no other begins, those under way are waited for,
    the writer is replaced once, and every write that failed is done again on the new one.
    """

    def __init__(
        self, writer: DiskWriter, pool: WriterPool, repeatable: tuple[type[Exception], ...]
    ) -> None:
        self._writer = writer
        self._pool = pool
        self._repeatable: Final = repeatable
        self._changed = threading.Condition()
        self._users = 0
        self._generation = 0
        self._is_replacing = False
        self._error: BaseException | None = None

    @property
    def writer(self) -> DiskWriter:
        """The present one, or the last."""
        return self._writer

    def run(self, act: Act) -> None:
        """Return when `act` came through on some writer. Raises what the pool raised when it gave up, in
        every thread and from then on.
        """
        while True:
            writer, generation = self._take()
            try:
                act(writer)
            except self._repeatable as error:
                failure: Exception = error
            else:
                return
            finally:
                self._give_back()
            self._replace(generation, failure)

    def close(self) -> None:
        """Close the present writer and refuse what comes after."""
        with self._changed:
            if self._error is None:
                self._error = TransientTransportError("the writer was closed")
            writer = self._writer
        writer.close()

    def _take(self) -> tuple[DiskWriter, int]:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_replacing)
            if self._error is not None:
                raise self._error
            self._users += 1
            return self._writer, self._generation

    def _give_back(self) -> None:
        with self._changed:
            self._users -= 1
            self._changed.notify_all()

    def _replace(self, generation: int, failure: Exception) -> None:
        """By the first thread that met the failure; the others have nothing to do."""
        with self._changed:
            if self._is_replacing or generation != self._generation:
                return
            self._is_replacing = True
            self._changed.wait_for(lambda: self._users == 0)
        try:
            writer = self._pool.replace(self._writer, failure)
        except BaseException as error:
            self._end_of_replacing(None, error)
            raise
        self._end_of_replacing(writer, None)

    def _end_of_replacing(self, writer: DiskWriter | None, error: BaseException | None) -> None:
        with self._changed:
            closed_meanwhile = self._error is not None
            if writer is not None:
                self._writer = writer
            if self._error is None:
                self._error = error
            self._generation += 1
            self._is_replacing = False
            self._changed.notify_all()
        if closed_meanwhile and writer is not None:
            writer.close()
