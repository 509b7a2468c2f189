"""What a repository's storage needs beside its location: secrets, and for how long it keeps what is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from sqlalchemy.orm import Session as DbSession

from backup_server.db.tables import Repository
from backup_server.errors import InvalidError, WrongKeyError
from backup_server.services import catalogue, sessions
from backup_server.services.context import Context
from backup_server.services.repository_agent import (
    StorageAccess,
    open_repository,
)
from backup_server.services.shapes import Fields, by_ref, when
from transports.vsphere.model import Secret

SECRET_NAMES: Final = frozenset(
    {
        "access_key_id", "secret_access_key", "session_token",
        "account_key", "sas_token", "service_account_json",
    }
)  # fmt: skip
MAX_DAYS: Final = 36_500
UNLIMITED_BYTES: Final = 1 << 60
"""What the agent says of a storage that does not tell how much room it has."""


def check_secrets(value: Any) -> Secret | None:
    """Secrets as a door has them: an object of texts. Raises ValueError, which repeats none of them."""
    if value is None or value == {}:
        return None
    if not isinstance(value, Mapping) or not all(
        isinstance(text, str) and text for text in value.values()
    ):
        raise ValueError("must be an object of texts that are not empty")
    if unknown := {str(name) for name in value} - SECRET_NAMES:
        raise ValueError(
            f"has no {', '.join(sorted(unknown))}; there are {', '.join(sorted(SECRET_NAMES))}"
        )
    return Secret(json.dumps(dict(value), sort_keys=True))


def check_days(value: Any) -> int:
    """Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_DAYS:
        raise ValueError(f"must be a whole number of days from 0 (not immutable) to {MAX_DAYS}")
    return value


def change(ctx: Context, ref: str, given: Fields) -> StorageAccess | None:
    """What an edit makes of the storage's access, tried out; None when it changes nothing of it."""
    if not (given.has("storage_secrets") or given.has("immutable_days")):
        return None
    secrets = given.checked("storage_secrets", check_secrets)
    days = given.checked("immutable_days", check_days, default=0)
    given.finish("the change of the repository", ignore=("name", "max_tasks", "verification"))
    with ctx.db.read() as s:
        repository_id = by_ref(s, Repository, ref).id
    access = ctx.agents.access(repository_id)
    storage = StorageAccess(
        secrets=secrets if given.has("storage_secrets") else access.storage.secrets,
        immutable_days=days if given.has("immutable_days") else access.storage.immutable_days,
    )
    link = ctx.agents.start()
    try:
        open_repository(
            link,
            replace(access, storage=storage),
            timeout_s=ctx.agents.timeout_s,
        )
    finally:
        link.close()
    return storage


def store(ctx: Context, s: DbSession, row: Repository, storage: StorageAccess, now: datetime) -> None:
    """Write it to the repository's row, the secrets sealed."""
    row.settings = {**(row.settings or {}), "immutable_days": storage.immutable_days}
    if storage.secrets is None:
        return
    if row.storage_credential_id is None:
        row.storage_credential_id = ctx.credentials.store(s, "storage", storage.secrets, now)
    else:
        ctx.credentials.replace(s, row.storage_credential_id, storage.secrets)


def recover(ctx: Context, ref: str, as_of: datetime) -> dict[str, Any]:
    """Bring a bucket with object lock back to an earlier time, then the catalogue to what it holds.

    The data key of that time counts again. WrongKeyError when the server's own key came later: the bucket
    is brought back then, and waits for a key of that time.
    """
    now = ctx.clock()
    if as_of.tzinfo is None or as_of > now:
        text = "must be a time in the past, with its zone"
        raise InvalidError(f"as_of {text}", details={"as_of": text})
    with ctx.db.read() as s:
        row = by_ref(s, Repository, ref)
        name, repository_id = row.name, row.id
    sessions.refuse_busy(ctx, row, "what it writes would be set aside under it")
    access = ctx.agents.access(repository_id)
    ctx.agents.forget(repository_id)
    link = ctx.agents.start()
    try:
        done = link.call(
            "recover",
            {
                "location": access.location,
                "password": access.password.reveal(),
                "storage_secrets": access.storage.secrets_object(),
                "as_of_s": as_of.timestamp(),
            },
            timeout_s=ctx.agents.long_timeout_s,
        )
    except WrongKeyError as error:
        _remember_epoch(ctx, repository_id, 1)
        raise WrongKeyError(
            f"{error.message}. Repository {name!r} is as it was at {when(as_of)}, with the keys of that time: "
            f"give the server one of those with `vmhaul repository key use {name}`, and recover again"
        ) from error
    finally:
        link.close()
    _remember_epoch(ctx, repository_id, int(done.get("key_epoch") or 1))
    rebuilt = catalogue.rebuild(ctx, repository_id)
    return {
        "repository": name,
        "as_of": when(as_of),
        "uncovered": int(done["uncovered"]),
        "set_aside": int(done["set_aside"]),
        "rebuilt_packs": int(done["rebuilt_packs"]),
        "lost": [str(name) for name in done["lost"]],
        "restore_points": rebuilt["points"],
    }


def _remember_epoch(ctx: Context, repository_id: str, epoch: int) -> None:
    """Also an older one than was seen: somebody asked for it."""
    with ctx.db() as s:
        row = s.get_one(Repository, repository_id, with_for_update=True)
        row.settings = {**(row.settings or {}), "key_epoch": epoch}
    ctx.agents.forget(repository_id)
