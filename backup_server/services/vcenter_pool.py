"""One shared client for each vCenter.

A client keeps its session alive and renews it when it expired (see transports.vsphere.api); what the
pool adds is to make it late, share it, and forget it when its login changed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from backup_server.credentials import CredentialStore
from backup_server.db.engine import Database
from backup_server.db.fenced import NotLeadingError
from backup_server.db.tables import Vcenter
from backup_server.errors import NotFoundError
from transports.vsphere import Probe
from transports.vsphere.api import Vsphere
from transports.vsphere.model import Endpoint, Login


class Connect(Protocol):
    """`transports.vsphere.connect`, as far as the server uses it."""

    def __call__(
        self, endpoint: Endpoint, auth: Login, *, clock: Callable[[], float], keep_alive_s: float
    ) -> Vsphere: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class VsphereDoor:
    """How vCenters are reached: the functions of `transports.vsphere`, or a test's."""

    connect: Connect
    probe: Callable[[str, int], Probe]
    """Reads the certificate without trusting it. TransientTransportError when nothing answers."""


class VcenterPool:
    """Clients by the id of the vCenter's row. May be used by several threads."""

    def __init__(
        self,
        db: Database,
        credentials: CredentialStore,
        door: VsphereDoor,
        *,
        clock: Callable[[], datetime],
        keep_alive_s: float,
    ) -> None:
        self._db = db
        self._credentials = credentials
        self._door = door
        self._clock = clock
        self._keep_alive_s = keep_alive_s
        self._lock = threading.Lock()
        self._opening: dict[str, threading.Lock] = {}
        self._clients: dict[str, Vsphere] = {}

    def connect(self, endpoint: Endpoint, login: Login) -> Vsphere:
        """A client of one's own, to try a login; the caller closes it."""
        return self._door.connect(endpoint, login, clock=self._now_s, keep_alive_s=0)

    def probe(self, host: str, port: int) -> Probe:
        """The certificate that is shown there, for a person to confirm."""
        return self._door.probe(host, port)

    def get(self, vcenter_id: str) -> Vsphere:
        """The vCenter's client, logged in. NotFoundError without such a row; errors of
        transports.errors when it cannot be reached or refuses the login.
        """
        with self._lock:
            client = self._clients.get(vcenter_id)
            opening = self._opening.setdefault(vcenter_id, threading.Lock())
        if client is not None:
            return client
        with opening:  # a slow vCenter must not hold up the others
            with self._lock:
                if vcenter_id in self._clients:
                    return self._clients[vcenter_id]
            endpoint, login = self._access(vcenter_id)
            client = self._door.connect(
                endpoint, login, clock=self._now_s, keep_alive_s=self._keep_alive_s
            )
            with self._lock:
                self._clients[vcenter_id] = client
            return client

    def _now_s(self) -> float:
        return self._clock().timestamp()

    def _access(self, vcenter_id: str) -> tuple[Endpoint, Login]:
        with self._db.read() as s:
            row = s.get(Vcenter, vcenter_id)
            if row is None:
                raise NotFoundError(f"there is no vCenter {vcenter_id}")
            endpoint = Endpoint(host=row.host, port=row.port, thumbprint_sha256=row.thumbprint_sha256)
            password = self._credentials.fetch(s, row.credential_id)
            return endpoint, Login(username=row.username, password=password)

    def forget(self, vcenter_id: str) -> None:
        """Log out; the next get() connects with what is stored then."""
        with self._lock:
            client = self._clients.pop(vcenter_id, None)
        if client is not None:
            client.close()

    def close(self) -> None:
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            client.close()


class FencedVcenterPool(VcenterPool):
    """The clients of another pool, for a server while it leads: one that was stopped and wakes up must not touch
    a vCenter on which another works by now.
    """

    def __init__(self, pool: VcenterPool, leading: Callable[[], bool]) -> None:
        self._pool = pool
        self._leading = leading

    def connect(self, endpoint: Endpoint, login: Login) -> Vsphere:
        return self._pool.connect(endpoint, login)

    def probe(self, host: str, port: int) -> Probe:
        return self._pool.probe(host, port)

    def get(self, vcenter_id: str) -> Vsphere:
        """As the pool's. NotLeadingError when another server leads."""
        if not self._leading():
            raise NotLeadingError("another server leads; this one leaves vCenters alone")
        return self._pool.get(vcenter_id)

    def forget(self, vcenter_id: str) -> None:
        self._pool.forget(vcenter_id)

    def close(self) -> None:
        self._pool.close()
