"""One shared client for each vCenter, kept alive, made again when it was lost.

A client renews its own session when it expired (see transports.vsphere.api); what the pool adds is to
make it late, share it, keep it from falling asleep, and forget it when its login changed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from backup_server.credentials import CredentialStore
from backup_server.db.engine import Database
from backup_server.db.tables import Vcenter
from backup_server.errors import NotFoundError
from transports.errors import TransportError
from transports.vsphere.api import Vsphere
from transports.vsphere.model import Endpoint, Login


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbprints:
    """Of the certificate that a server shows; upper-case hex pairs with colons."""

    sha256: str
    sha1: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VsphereDoor:
    """How vCenters are reached."""

    connect: Callable[[Endpoint, Login], Vsphere]
    probe: Callable[[str, int], Thumbprints]
    """Reads the certificate without trusting it. TransientTransportError when nothing answers."""


class VcenterPool:
    """Clients by the id of the vCenter's row. May be used by several threads."""

    def __init__(
        self,
        db: Database,
        credentials: CredentialStore,
        door: VsphereDoor,
        *,
        keep_alive_s: float,
        log: Any = None,
    ) -> None:
        self._db = db
        self._credentials = credentials
        self._door = door
        self._keep_alive_s = keep_alive_s
        self._log = log or structlog.get_logger()
        self._lock = threading.Lock()
        self._opening: dict[str, threading.Lock] = {}
        self._clients: dict[str, Vsphere] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

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
            client = self._door.connect(endpoint, login)
            with self._lock:
                self._clients[vcenter_id] = client
            return client

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

    def keep_alive(self) -> None:
        """One small call on every client; one that does not answer is forgotten and made again later."""
        with self._lock:
            clients = dict(self._clients)
        for vcenter_id, client in clients.items():
            try:
                client.keep_alive()
            except TransportError as error:
                self._log.warning("vcenter.lost", vcenter_id=vcenter_id, reason=str(error))
                self.forget(vcenter_id)

    def start(self) -> None:
        """Begin keeping the sessions alive in a thread of its own."""
        self._thread = threading.Thread(target=self._loop, name="vcenter-keep-alive", daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        while not self._stop.wait(self._keep_alive_s):
            self.keep_alive()

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            client.close()
