"""Several servers on one database: which of them a local proxy belongs to, and that all have the same keys.

Each data directory is an instance and has an id in a file. A local proxy is run by the instance in whose data
directory its files are; the others leave it alone. Keys lie outside the database, so a second server gets them as
files; one with other keys could read no stored password and no proxy would believe it, so it does not start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.config import Settings
from backup_server.credentials import load_or_create_key
from backup_server.db.engine import Database
from backup_server.db.tables import Proxy, Setting
from backup_server.errors import SettingsError

INSTANCE_FILE: Final = "instance-id"
_HOME: Final = "local-proxy-home:"
_KEYS: Final = "keys:"


def instance_id(settings: Settings) -> str:
    """Of this data directory; made when there is none."""
    path = settings.data_dir / INSTANCE_FILE
    try:
        with path.open("x") as file:
            file.write(f"{uuid4()}\n")
    except FileExistsError:
        pass
    return path.read_text().strip()


# ---- local proxies --------------------------------------------------------------------------------


def claim(s: DbSession, settings: Settings, proxy_id: str) -> None:
    """This instance runs the local proxy."""
    s.merge(Setting(name=_HOME + proxy_id, value=instance_id(settings)))


def adopt(s: DbSession, settings: Settings) -> None:
    """At the start: local proxies that an earlier release made belong to the data directory with their files."""
    homes = _homes(s)
    local = s.scalars(sa.select(Proxy).where(Proxy.local.is_(True))).all()
    for row in local:
        if row.id not in homes and (settings.data_dir / "proxies" / row.name).is_dir():
            claim(s, settings, row.id)
    for gone in homes.keys() - {row.id for row in local}:
        s.delete(s.get_one(Setting, _HOME + gone))


def of_here(s: DbSession, settings: Settings, rows: Iterable[Proxy]) -> list[Proxy]:
    """Of local proxies those that this instance runs."""
    homes, here = _homes(s), instance_id(settings)
    return [row for row in rows if homes.get(row.id, here) == here]


def _homes(s: DbSession) -> dict[str, str]:
    rows = s.scalars(sa.select(Setting).where(Setting.name.startswith(_HOME)))
    return {row.name.removeprefix(_HOME): row.value for row in rows}


# ---- keys -----------------------------------------------------------------------------------------


def check_keys(db: Database, settings: Settings) -> None:
    """SettingsError when the key files are not those with which this database was begun."""
    with db() as s:
        for path in (settings.server_key_file, settings.signing_key_file):
            found = _fingerprint(path)
            row = s.get(Setting, _KEYS + path.name)
            if row is None:
                s.add(Setting(name=_KEYS + path.name, value=found))
            elif row.value != found and settings.accept_new_keys:
                row.value = found
            elif row.value != found:
                raise SettingsError(
                    f"{path} is not the key with which this database was begun: bring the keys over from the server "
                    "that runs on it with `vmhaul keys export` and `vmhaul keys import`, or copy the data directory's "
                    f"{path.name}. When that is lost, start once with "
                    "VMHAUL_ACCEPT_NEW_KEYS=true, enter all passwords again and let every proxy join anew"
                )


def _fingerprint(path: Path) -> str:
    """Tells keys apart and nothing about them."""
    return hashlib.sha256(b"vmhaul key fingerprint" + load_or_create_key(path)).hexdigest()
