"""Keys of repositories: every password, key file and recovery key opens a repository alone.

The server stores one of them for each repository, sealed, and opens it with that one: here "the server's own".
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
import structlog

from backup_server.db.states import SessionKind, SessionState
from backup_server.db.tables import Repository, Session
from backup_server.errors import ConflictError, InvalidError, NotFoundError, VmhaulError, WrongKeyError
from backup_server.services.context import Context
from backup_server.services.repository_agent import open_repository
from backup_server.services.shapes import by_ref, when
from transports.vsphere.model import Secret

KINDS: Final = ("password", "key-file", "recovery")
MIN_PASSWORD_CHARS: Final = 8
SHORTEST_PREFIX: Final = 4
_READERS_OF_ALL: Final = (
    SessionKind.CHECK,
    SessionKind.PRUNE,
    SessionKind.REPAIR,
    SessionKind.RESCAN,
)
"""Sessions that read what is written meanwhile, and so cannot go on with the key they began with."""

log = structlog.get_logger(__name__)


def list_all(ctx: Context, ref: str) -> list[dict[str, Any]]:
    """Every key object, oldest first; `problem` tells why the data key could not be given to it."""
    row = _row(ctx, ref)
    answer = ctx.agents.get(row.id).keys()
    _remember_epoch(ctx, row.id, int(answer["key_epoch"]))
    return [_shape(key) for key in answer["keys"]]


def add(
    ctx: Context, ref: str, *, kind: str, password: Secret | None = None, label: str = ""
) -> dict[str, Any]:
    """One more key. The answer has `secret`, the text of a key file or recovery key, this once."""
    if kind not in KINDS:
        raise InvalidError(
            f"there is no kind of key {kind!r}", details={"kind": f"must be one of {', '.join(KINDS)}"}
        )
    if kind == "password":
        password = _checked(password, "password")
    row = _row(ctx, ref)
    key_id, text = ctx.agents.get(row.id).add_key(kind, password=password, label=label)
    log.info("repository-key-added", repository=row.name, key_id=key_id, kind=kind, label=label)
    return {**_find(ctx, row, key_id), "secret": text.reveal() or None}


def change(
    ctx: Context, ref: str, *, new_password: Secret, old_password: Secret | None = None
) -> dict[str, Any]:
    """Another password in the place of the server's own, or of `old_password`.

    In this order: the new key, the server's memory, the end of the old key. So a crash at any time leaves the
    server with a password that opens.
    """
    new_password = _checked(new_password, "new_password")
    row = _row(ctx, ref)
    agent = ctx.agents.get(row.id)
    stored = _stored(ctx, row)
    if old_password is not None and old_password.reveal() != stored.reveal():
        key_id = agent.change_key(old_password, new_password)
        log.info("repository-key-changed", repository=row.name, key_id=key_id, own=False)
        return _find(ctx, row, key_id)
    old = [key for key in agent.keys()["keys"] if key["own"]]
    label = str(old[0]["label"]) if old else ""
    key_id, _ = agent.add_key("password", password=new_password, label=label)
    # Bringing an old key object to this version gives it another id, so ours is looked up again.
    old = [key for key in agent.keys()["keys"] if key["own"]]
    _store(ctx, row.id, new_password)
    agent = ctx.agents.get(row.id)
    for key in old:
        try:
            agent.revoke_key(str(key["id"]))
        except ConflictError as error:
            raise ConflictError(
                f"repository {row.name!r} opens with the new password, which the server uses now, but the old "
                f"one opens it too: {error.message}"
            ) from error
    log.info("repository-key-changed", repository=row.name, key_id=key_id, own=True)
    return _find(ctx, row, key_id)


def revoke(ctx: Context, ref: str, key_ref: str) -> None:
    """Delete a key, named by its id or the beginning of it. ConflictError for the server's own and for the last one."""
    row = _row(ctx, ref)
    key_id = _named(ctx, row, key_ref)
    ctx.agents.get(row.id).revoke_key(key_id)
    log.warning("repository-key-revoked", repository=row.name, key_id=key_id)


def _named(ctx: Context, row: Repository, key_ref: str) -> str:
    """The id of a key by that or the beginning of it. NotFoundError."""
    named = [
        str(key["id"])
        for key in ctx.agents.get(row.id).keys()["keys"]
        if key["id"] == key_ref
        or (len(key_ref) >= SHORTEST_PREFIX and str(key["id"]).startswith(key_ref))
    ]
    if len(named) != 1:
        raise NotFoundError(
            f"{'no key' if not named else 'more than one key'} of repository {row.name!r} is called "
            f"{key_ref!r}; `vmhaul repository key list {row.name}` shows them"
        )
    return named[0]


def rotate(ctx: Context, ref: str, *, without: Sequence[str] = ()) -> dict[str, Any]:
    """Encrypt new data with a new key from the next task on. Running tasks go on with theirs.

    `without`: keys that are not given the new one, where the storage does not let them be deleted.
    """
    row = _row(ctx, ref)
    _refuse_readers(ctx, row)
    left_out = [_named(ctx, row, key_ref) for key_ref in without]
    epoch = ctx.agents.get(row.id).rotate_key(left_out)
    _remember_epoch(ctx, row.id, epoch)
    ctx.agents.forget(row.id)  # whoever asks from now on gets the new key
    log.warning("repository-data-key-changed", repository=row.name, key_epoch=epoch)
    return {"key_epoch": epoch}


def use(ctx: Context, ref: str, password: Secret) -> dict[str, Any]:
    """Let the server open the repository with this password (or recovery key, or text of a key file) from now on."""
    row = _row(ctx, ref)
    access = ctx.agents.access(row.id, password=password)
    link = ctx.agents.start()
    try:
        open_repository(link, access, timeout_s=ctx.agents.timeout_s)
    except WrongKeyError as error:
        raise InvalidError(error.message, details={"password": error.message}) from error
    finally:
        link.close()
    _store(ctx, row.id, password)
    log.warning("repository-key-used", repository=row.name)
    [own] = [key for key in list_all(ctx, row.id) if key["own"]]
    return own


def upgrade(ctx: Context, ref: str) -> dict[str, Any]:
    """Give the repository every feature of this release. Older vmhauls refuse it from then on."""
    row = _row(ctx, ref)
    answer = ctx.agents.get(row.id).upgrade()
    ctx.agents.forget(row.id)
    added = [str(name) for name in answer["added"]]
    log.warning("repository-upgraded", repository=row.name, added=added)
    return {"added": added, "features": [str(name) for name in answer["features"]]}


def _row(ctx: Context, ref: str) -> Repository:
    with ctx.db.read() as s:
        return by_ref(s, Repository, ref)


def _stored(ctx: Context, row: Repository) -> Secret:
    with ctx.db.read() as s:
        return ctx.credentials.fetch(s, row.credential_id)


def _store(ctx: Context, repository_id: str, password: Secret) -> None:
    with ctx.db() as s:
        row = s.get_one(Repository, repository_id)
        ctx.credentials.replace(s, row.credential_id, password)
    ctx.agents.forget(repository_id)


def _remember_epoch(ctx: Context, repository_id: str, epoch: int) -> None:
    """An older state of the repository is refused from then on, whoever puts it back."""
    with ctx.db() as s:
        row = s.get_one(Repository, repository_id, with_for_update=True)
        if epoch > int((row.settings or {}).get("key_epoch") or 1):
            row.settings = {**(row.settings or {}), "key_epoch": epoch}


def _refuse_readers(ctx: Context, row: Repository) -> None:
    with ctx.db.read() as s:
        running = s.scalar(
            sa.select(Session.id).where(
                Session.repository_id == row.id,
                Session.kind.in_([kind.value for kind in _READERS_OF_ALL]),
                Session.state != SessionState.FINISHED.value,
            )
        )
    if running is not None:
        raise ConflictError(
            f"session {running} reads all of repository {row.name!r}; change the data key when it has ended, or "
            "cancel it",
            details={"session": running},
        )


def _checked(password: Secret | None, field: str) -> Secret:
    if password is None or len(password.reveal()) < MIN_PASSWORD_CHARS:
        reason = f"must have at least {MIN_PASSWORD_CHARS} characters"
        raise InvalidError(f"{field} {reason}", details={field: reason})
    return password


def _find(ctx: Context, row: Repository, key_id: str) -> dict[str, Any]:
    for key in ctx.agents.get(row.id).keys()["keys"]:
        if key["id"] == key_id:
            return _shape(key)
    raise VmhaulError(f"key {key_id} of repository {row.name!r} was revoked in this moment")


def _shape(key: dict[str, Any]) -> dict[str, Any]:
    created = float(key["created_at_s"])
    return {
        "id": str(key["id"]),
        "kind": str(key["kind"]),
        "label": str(key["label"]),
        "created_at": when(datetime.fromtimestamp(created, UTC)) if created else None,
        "version": int(key["version"]),
        "problem": str(key["problem"]),
        "own": bool(key["own"]),
    }
