"""Who may keep a connection to the proxies' door, and for how long.

Connections are counted when they are accepted, before TLS: whoever says nothing must not use up what proxies need. A
connection has a time for its first whole question, and for each further one; while a question is being answered it
has all the time that takes. A connection that brought a believed question is **known**. Where there are too many,
the oldest that is not known goes first, among those of the same address when that address has too many.

All on the thread of the door's event loop.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Peer = tuple[str, int]
"""Address and port from which a connection came."""
_REFUSED: Final = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorLimits:
    most: int = 2000
    """Connections at a time. A fleet of 200 has a few each."""
    most_of_address: int = 1000
    """A fleet may stand behind one address; one address must not keep out all others."""
    most_unknown: int = 1000
    most_unknown_of_address: int = 250
    question_s: float = 20.0
    """From connecting, or from the answer before, until a question is whole: TLS, head and body."""


class Guest(socket.socket):
    """A connection that says when it is closed."""

    def __init__(self, keeper: Doorkeeper, peer: Peer, fileno: int) -> None:
        super().__init__(fileno=fileno)
        self.peer = peer
        self._keeper = keeper

    def close(self) -> None:
        self._keeper.gone(self)
        super().close()


class GuardedListener(socket.socket):
    """A listening socket whose connections the keeper knows of from the beginning."""

    def __init__(self, keeper: Doorkeeper, listener: socket.socket) -> None:
        """`listener` is taken over; it is of no use afterwards."""
        super().__init__(fileno=listener.detach())
        self._keeper = keeper

    def accept(self) -> tuple[Guest, Any]:
        plain, address = super().accept()
        guest = Guest(self._keeper, (str(address[0]), int(address[1])), plain.detach())
        self._keeper.came(guest)
        return guest, address


@dataclass(slots=True)
class _Stay:
    guest: Guest
    until_s: float | None
    """When it must have asked; None: it is being answered."""
    known: bool = False


class Doorkeeper:
    def __init__(self, clock: Callable[[], float], limits: DoorLimits | None = None) -> None:
        """`clock`: monotonic seconds."""
        self._clock = clock
        self._limits = limits or DoorLimits()
        self._stays: dict[Peer, _Stay] = {}
        """In the order of their coming."""
        self.closed = 0
        """How many were sent away so far."""

    def __len__(self) -> int:
        """Connections that are there now."""
        return len(self._stays)

    def came(self, guest: Guest) -> None:
        limits = self._limits
        self._stays[guest.peer] = _Stay(guest, self._clock() + limits.question_s)
        host = guest.peer[0]
        unknown = [stay for stay in self._stays.values() if not stay.known]
        unknown_here = [stay for stay in unknown if stay.guest.peer[0] == host]
        if len(unknown_here) > limits.most_unknown_of_address:
            self._close(unknown_here[0])
        elif len(unknown) > limits.most_unknown:
            self._close(unknown[0])
        here = [stay for stay in self._stays.values() if stay.guest.peer[0] == host]
        if len(here) > limits.most_of_address:
            self._close(_least(here))
        elif len(self._stays) > limits.most:
            self._close(_least(list(self._stays.values())))

    def gone(self, guest: Guest) -> None:
        """May be called more than once."""
        stay = self._stays.get(guest.peer)
        if stay is not None and stay.guest is guest:
            del self._stays[guest.peer]

    def asked(self, peer: Peer) -> None:
        """A question is whole."""
        stay = self._stays.get(peer)
        if stay is not None:
            stay.until_s = None

    def answered(self, peer: Peer, *, believed: bool) -> None:
        stay = self._stays.get(peer)
        if stay is not None:
            stay.until_s = self._clock() + self._limits.question_s
            stay.known = stay.known or believed

    async def sweep(self) -> None:
        """Send away those whose time is over."""
        now_s = self._clock()
        late = [
            stay for stay in self._stays.values() if stay.until_s is not None and stay.until_s < now_s
        ]
        for stay in late:
            self._close(stay)

    def _close(self, stay: _Stay) -> None:
        """Its transport finds the end, and closes the socket itself."""
        self.gone(stay.guest)
        self.closed += 1
        with contextlib.suppress(OSError):
            stay.guest.shutdown(socket.SHUT_RDWR)


def _least(stays: list[_Stay]) -> _Stay:
    """Who goes first: one that is not known, one that is not being answered, the oldest."""
    return min(stays, key=lambda stay: (stay.known, stay.until_s is None))


class Watched:
    """Tells the keeper of questions and answers."""

    def __init__(self, app: ASGIApp, keeper: Doorkeeper) -> None:
        self._app = app
        self._keeper = keeper

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope.get("client"):
            await self._app(scope, receive, send)
            return
        host, port = scope["client"]
        peer, status = (str(host), int(port)), _REFUSED

        async def received() -> Message:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                self._keeper.asked(peer)
            return message

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            await send(message)

        try:
            await self._app(scope, received, sent)
        finally:
            # Whoever only looks at the authority's certificate, as everybody may, is not known by that.
            believed = scope["method"] == "POST" and status < _REFUSED
            self._keeper.answered(peer, believed=believed)
