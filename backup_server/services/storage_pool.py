"""One shared client for each storage system, made late and forgotten when its login changed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Final

from backup_server.credentials import CredentialStore
from backup_server.db.engine import Database
from backup_server.db.fenced import NotLeadingError
from backup_server.db.tables import StorageSystem as StorageRow
from backup_server.errors import NotFoundError
from transports.storage_systems.base import StorageAccess, StorageDriver, StorageSystem
from transports.vsphere.model import Secret

IDENTITY: Final = "identity"
PROXIES: Final = "proxies"
DRIVER_OPTIONS: Final = "driver"
"""Entries of a row's options: the confirmed identity, the proxies that may read, what the driver is told."""


class StoragePool:
    """Clients by the id of the system's row. May be used by several threads."""

    def __init__(
        self, db: Database, credentials: CredentialStore, drivers: Mapping[str, StorageDriver]
    ) -> None:
        self._db = db
        self._credentials = credentials
        self.drivers = drivers
        self._lock = threading.Lock()
        self._clients: dict[str, StorageSystem] = {}

    def get(self, system_id: str) -> StorageSystem:
        """NotFoundError without such a row. The client logs in when it is first used."""
        with self._lock:
            client = self._clients.get(system_id)
            if client is None:
                driver, access = self._access(system_id)
                client = self._clients[system_id] = driver.connect(access)
            return client

    def _access(self, system_id: str) -> tuple[StorageDriver, StorageAccess]:
        with self._db.read() as s:
            row = s.get(StorageRow, system_id)
            if row is None:
                raise NotFoundError(f"there is no storage system {system_id}")
            if row.driver not in self.drivers:
                raise NotFoundError(f"this release has no driver {row.driver} for {row.name}")
            secrets = (
                self._credentials.fetch(s, row.credential_id) if row.credential_id else Secret("{}")
            )
            access = StorageAccess(
                address=row.address,
                identity=str(row.options.get(IDENTITY, "")),
                secrets=opened(secrets),
                options=row.options.get(DRIVER_OPTIONS, {}),
            )
            return self.drivers[row.driver], access

    def forget(self, system_id: str) -> None:
        """Log out; the next get() connects with what is stored then."""
        with self._lock:
            client = self._clients.pop(system_id, None)
        if client is not None:
            client.close()

    def close(self) -> None:
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            client.close()


class FencedStoragePool(StoragePool):
    """The clients of another pool, for a server while it leads: one that was stopped and wakes up must make no snapshot
    and take none away, as another works there by now.
    """

    def __init__(self, pool: StoragePool, leading: Callable[[], bool]) -> None:
        self._pool = pool
        self._leading = leading
        self.drivers = pool.drivers

    def get(self, system_id: str) -> StorageSystem:
        """As the pool's. NotLeadingError when another server leads."""
        if not self._leading():
            raise NotLeadingError("another server leads; this one leaves storage systems alone")
        return self._pool.get(system_id)

    def forget(self, system_id: str) -> None:
        self._pool.forget(system_id)

    def close(self) -> None:
        self._pool.close()


def packed(secrets: Mapping[str, Secret]) -> Secret:
    """One text for the credential store."""
    return Secret(json.dumps({name: secret.reveal() for name, secret in sorted(secrets.items())}))


def opened(text: Secret) -> dict[str, Secret]:
    return {name: Secret(value) for name, value in json.loads(text.reveal()).items()}
