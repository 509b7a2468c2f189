"""A vCenter session for one disk, made anew when vCenter forgot it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from proxy_worker.contracts.envelope import Clock
from proxy_worker.contracts.messages import VsphereAccess
from transports.errors import PermanentTransportError, SessionExpiredError
from transports.vsphere.api import Vsphere
from transports.vsphere.model import CloneTicket, Endpoint, Secret

T = TypeVar("T")
Connect = Callable[[Endpoint, CloneTicket, Clock], Vsphere]
RenewAccess = Callable[[], VsphereAccess]
"""Asks the worker, which asks the server, for a fresh clone ticket; TransientTransportError when there is
none to be had now."""


def connect_with_ticket(endpoint: Endpoint, ticket: CloneTicket, clock: Clock) -> Vsphere:
    from transports import vsphere

    return vsphere.connect(endpoint, ticket, clock=clock)


class RenewableSession:
    """Holds the client. Safe for threads: one renews, the others wait for it."""

    def __init__(
        self, access: VsphereAccess | None, renew: RenewAccess, connect: Connect, clock: Clock
    ) -> None:
        if access is None:
            raise PermanentTransportError("the server gave no access to vCenter for this task")
        self._renew = renew
        self._connect = connect
        self._clock = clock
        self._lock = threading.Lock()
        self._client: Vsphere | None = None
        try:
            self._client = self._open(access)
        except SessionExpiredError:
            # The ticket lives for seconds; a slow start of ours is no reason to give up.
            self._client = self._open(renew())

    def _open(self, access: VsphereAccess) -> Vsphere:
        endpoint = Endpoint(
            host=access.host, port=access.port, thumbprint_sha256=access.thumbprint_sha256
        )
        ticket = CloneTicket(ticket=Secret(access.clone_ticket))
        return self._connect(endpoint, ticket, self._clock)

    def use(self, action: Callable[[Vsphere], T]) -> T:
        """`action` on the client; once more on a new session when the old one is no longer known."""
        client = self._present()
        try:
            return action(client)
        except SessionExpiredError:
            return action(self._replace(client))

    def _present(self) -> Vsphere:
        with self._lock:
            if self._client is None:
                self._client = self._open(self._renew())
            return self._client

    def _replace(self, old: Vsphere) -> Vsphere:
        with self._lock:
            if self._client is old:
                self._client = None
                old.close()
            if self._client is None:
                self._client = self._open(self._renew())
            return self._client

    def close(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None
