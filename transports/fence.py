"""A writer that stops writing when the lease on its disk may have ended.

Who writes to a disk directly (over NFS, on a LUN) is stopped by nothing when another attempt at the same disk begins: there is
no lock of vSphere in between. So each write asks first whether the lease still holds. The time comes from a clock that
goes on while the machine sleeps; what was handed to the kernel or to a socket before is not called back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from transports.base import DiskWriter, WriterCapabilities

_LOOK_S = 0.5


class Fence:
    """Open until a time that is moved on again and again. Safe for threads."""

    def __init__(self, clock: Callable[[], float], pause: Callable[[float], None]) -> None:
        """`clock`: seconds, also through a suspension of the machine; `pause` waits so long, or raises when the work is
        to end.
        """
        self._clock = clock
        self._pause = pause
        self._until_s = float("-inf")
        self._moved = threading.Event()

    def open_until(self, until_s: float) -> None:
        """By its clock. An earlier time than the present one changes nothing."""
        self._until_s = max(self._until_s, until_s)
        self._moved.set()

    def pass_through(self) -> None:
        """Return while it is open; else wait, for a longer lease or for what `pause` raises."""
        while self._clock() >= self._until_s:
            self._moved.clear()
            self._pause(0.0)
            self._moved.wait(_LOOK_S)


class FencedWriter:
    """A DiskWriter that hands no write on while the fence is closed."""

    def __init__(self, writer: DiskWriter, fence: Fence) -> None:
        self._writer = writer
        self._fence = fence

    @property
    def size_bytes(self) -> int:
        return self._writer.size_bytes

    @property
    def capabilities(self) -> WriterCapabilities:
        return self._writer.capabilities

    def write_from(self, offset: int, buffer: memoryview) -> None:
        self._fence.pass_through()
        self._writer.write_from(offset, buffer)

    def flush(self) -> None:
        self._fence.pass_through()
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
