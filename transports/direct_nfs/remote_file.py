"""One file of an export over several connections, for any number of threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from transports.direct_nfs.connection import Connection, RemoteFile
from transports.errors import TransientTransportError, TransportUnavailableError

Connect = Callable[[], Connection]


class SharedFile:
    """A `transports.extent_reader.File`. As many connections as threads use it at a time, up to a limit."""

    def __init__(self, connect: Connect, path: str, *, write: bool, connections: int) -> None:
        """Opens the file once. TransportUnavailableError when it cannot be."""
        self._connect = connect
        self._path = path
        self._write = write
        self._free = threading.Condition()
        # In turn, so that no connection is idle for longer than a server of version 4 keeps its state.
        self._idle: deque[tuple[Connection, RemoteFile]] = deque()
        self._left = connections
        self._closed = False
        first = self._open()
        self.size_bytes = first[1].size_bytes()
        self._left -= 1
        self._idle.append(first)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        with self._one() as file:
            file.read_into(offset, buffer)

    def write_from(self, offset: int, buffer: memoryview) -> None:
        with self._one() as file:
            file.write_from(offset, buffer)

    def flush(self) -> None:
        """What was written is on stable storage already; the server says so once more."""
        with self._one() as file:
            file.flush()

    def close(self) -> None:
        with self._free:
            self._closed = True
            idle, self._idle = self._idle, deque()
            self._free.notify_all()
        for connection, file in idle:
            file.close()
            connection.close()

    @contextmanager
    def _one(self) -> Iterator[RemoteFile]:
        connection, file = self._take()
        try:
            yield file
        finally:
            self._give_back(connection, file)

    def _take(self) -> tuple[Connection, RemoteFile]:
        with self._free:
            while not self._closed and not self._idle and not self._left:
                self._free.wait()
            if self._closed:
                raise TransientTransportError(f"{self._path} was closed")
            if self._idle:
                return self._idle.popleft()
            self._left -= 1
        try:
            return self._open()
        except TransportUnavailableError as error:
            with self._free:
                self._left += 1
                self._free.notify()
            # The file is open on another connection: this is no reason to leave the mode.
            raise TransientTransportError(str(error)) from error

    def _give_back(self, connection: Connection, file: RemoteFile) -> None:
        with self._free:
            if not self._closed and not connection.broken:
                self._idle.append((connection, file))
                self._free.notify()
                return
            self._left += 1
            self._free.notify()
        file.close()
        connection.close()

    def _open(self) -> tuple[Connection, RemoteFile]:
        connection = self._connect()
        try:
            return connection, connection.open(self._path, write=self._write)
        except BaseException:
            connection.close()
            raise
