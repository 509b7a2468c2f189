"""How a proxy's first and repeated coming with a join token is judged and kept, in the caller's transaction."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.tables import Proxy
from backup_server.services import broker_users, fleet_tokens, proxy_settings, proxy_troubles
from backup_server.services.context import Context
from backup_server.services.proxy_names import refuse_name_in_use

JOINED: Final = "joined"
"""In `proxies.facts`: hash of the token that was used, when, and until when it was good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joining:
    """What a proxy brings; keys in lower case."""

    name: str
    name_is_good: bool
    """Whether a new proxy may be called so."""
    token_hash: str = field(repr=False)
    signing_key: str
    sealing_key: str
    version: str


def take_in(ctx: Context, s: DbSession, joining: Joining, now: datetime) -> str | None:
    """Id of the proxy, whose keys and broker password are kept then; None: it is not let in.

    sqlalchemy's IntegrityError when another machine takes a new name at the same moment; ConflictError when the worker
    of a proxy that was renamed goes by that name.
    """
    return _repeated(s, joining, now) or _first(ctx, s, joining, now)


def _repeated(s: DbSession, joining: Joining, now: datetime) -> str | None:
    """Id of the proxy that joined with that token and those keys, when it may have missed the answer."""
    row = s.scalars(
        sa.select(Proxy).where(
            Proxy.name == joining.name,
            Proxy.signing_key == joining.signing_key,
            Proxy.sealing_key == joining.sealing_key,
        )
    ).first()
    joined: dict[str, Any] = {} if row is None else row.facts.get(JOINED) or {}
    if row is None or joined.get("token_hash") != joining.token_hash:
        return None
    if joined["until"] is not None and now >= datetime.fromisoformat(joined["until"]):
        return None
    if row.last_seen_at is not None and row.last_seen_at >= datetime.fromisoformat(joined["at"]):
        return None  # It had the answer: nobody else is to get it.
    return row.id


def _first(ctx: Context, s: DbSession, joining: Joining, now: datetime) -> str | None:
    if joining.name_is_good:
        fleet_tokens.admit(ctx, s, digest=joining.token_hash, name=joining.name, now=now)
    until = s.scalar(sa.select(Proxy.join_token_expires_at).where(Proxy.name == joining.name))
    # One guarded UPDATE: of two that come with the same token, one is enrolled.
    found = s.execute(
        sa.update(Proxy)
        .where(
            Proxy.name == joining.name,
            Proxy.join_token_hash == joining.token_hash,
            sa.or_(Proxy.join_token_expires_at.is_(None), Proxy.join_token_expires_at > now),
        )
        .values(
            join_token_hash=None,
            join_token_expires_at=None,
            signing_key=joining.signing_key,
            sealing_key=joining.sealing_key,
            version=joining.version,
        )
        .returning(Proxy.id)
    ).first()
    if found is None:
        return None
    row = s.get_one(Proxy, found.id)
    refuse_name_in_use(s, row)
    proxy_troubles.forget(row)
    joined = {
        "token_hash": joining.token_hash,
        "at": now.isoformat(),
        "until": None if until is None else until.isoformat(),
    }
    row.facts = {**row.facts, JOINED: joined}
    row.settings = {k: v for k, v in row.settings.items() if k != proxy_settings.ENROLLED_AS}
    broker_users.give_password(ctx, s, row)
    return row.id
