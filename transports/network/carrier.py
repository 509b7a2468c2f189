"""The byte stream to a host, after (and during) the doorman's hand-over: exact reads, whole sends."""

from __future__ import annotations

import socket
import ssl
import sys
from contextlib import suppress

from transports.errors import TransientTransportError


class Carrier:
    """A connected socket, bare or TLS. Every failure of it is a TransientTransportError."""

    __slots__ = ("_peer", "_secure", "_socket")

    def __init__(self, connected: socket.socket, peer: str) -> None:
        self._socket = connected
        self._peer = peer
        self._secure = isinstance(connected, ssl.SSLSocket)

    @property
    def socket(self) -> socket.socket:
        return self._socket

    def send(self, message: bytes, data: memoryview | None = None) -> None:
        """Send a message, as one TLS record where it fits one, and `data` right behind it.

        The host looks at its socket once for each record: two messages in one are not both noticed.
        """
        try:
            if data is None:
                self._socket.sendall(message)
            elif self._secure:
                self._socket.sendall(message)
                self._socket.sendall(data)
            else:
                self._send_both(message, data)
        except OSError as error:
            raise self._lost(error) from error

    def receive_into(self, view: memoryview) -> None:
        """Fill the whole of `view`."""
        receive = self._socket.recv_into
        length = len(view)
        try:
            got = receive(view)
            filled = got
            while filled < length and got:
                got = receive(view[filled:])
                filled += got
        except OSError as error:
            raise self._lost(error) from error
        if filled < length:
            raise TransientTransportError(
                f"{self._peer} closed the connection in the middle of an answer; open the disk again"
            )

    def receive(self, length: int) -> bytearray:
        data = bytearray(length)
        if length:
            self.receive_into(memoryview(data))
        return data

    def set_timeout(self, timeout_s: float) -> None:
        with suppress(OSError):
            self._socket.settimeout(timeout_s)

    def drop(self) -> None:
        """Close without a farewell: hosts expect none. May be called twice."""
        with suppress(OSError):
            self._socket.close()

    def _send_both(self, message: bytes, data: memoryview) -> None:
        if sys.platform == "win32":
            # Its sockets gather nothing. Without TLS there are no records: only the bytes and their order count.
            self._socket.sendall(message)
            self._socket.sendall(data)
        else:
            sent = self._socket.sendmsg([message, data])
            if sent < len(message):
                self._socket.sendall(message[sent:])
                sent = len(message)
            if sent < len(message) + len(data):
                self._socket.sendall(data[sent - len(message) :])

    def _lost(self, error: OSError) -> TransientTransportError:
        if isinstance(error, TimeoutError):
            return TransientTransportError(
                f"{self._peer} has not answered for {self._socket.gettimeout() or 0:.0f} s; open the disk again"
            )
        return TransientTransportError(
            f"the connection to {self._peer} failed ({error}); open the disk again"
        )
