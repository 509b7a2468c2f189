"""A front before a TCP server: passes on what comes, keeps what the client sent, cuts answers where it is told to."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_CHUNK_BYTES = 1 << 12


class TcpFront:
    """`cut_after_bytes`: the connection that carries the answer's byte of that number ends there, once; 0: none."""

    def __init__(self, address: str, port: int, server: str, *, cut_after_bytes: int = 0) -> None:
        self.sent = bytearray()
        self.cuts = 0
        self._left = cut_after_bytes
        self._server = (server, port)
        self._lock = threading.Lock()
        self._listening = socket.create_server((address, port))
        self._sockets = [self._listening]
        self._threads: list[threading.Thread] = []
        self._begin(self._accept)

    def close(self) -> None:
        with self._lock:
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)
        for each in self._sockets:
            each.close()

    def _begin(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
                far = socket.create_connection(self._server)
            except OSError:
                return
            with self._lock:
                self._sockets += [client, far]
            self._begin(lambda client=client, far=far: self._ask(client, far))  # type: ignore[misc]
            self._begin(lambda client=client, far=far: self._answer(far, client))  # type: ignore[misc]

    def _ask(self, client: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(_CHUNK_BYTES):
                self.sent += data
                far.sendall(data)
        self._end(client, far)

    def _answer(self, far: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(_CHUNK_BYTES):
                part = self._allowed(data)
                client.sendall(part)
                if len(part) < len(data):
                    break
        self._end(client, far)

    def _allowed(self, data: bytes) -> bytes:
        with self._lock:
            if not self._left:
                return data
            part = data[: self._left]
            self._left -= len(part)
            if not self._left:
                self.cuts += 1
                return part[:-1]
            return part

    @staticmethod
    def _end(*both: socket.socket) -> None:
        for each in both:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextmanager
def tcp_front(address: str, port: int, server: str, *, cut_after_bytes: int = 0) -> Iterator[TcpFront]:
    front = TcpFront(address, port, server, cut_after_bytes=cut_after_bytes)
    try:
        yield front
    finally:
        front.close()
