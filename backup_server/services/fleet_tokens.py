"""Join tokens for machines that come and go by the dozen: one text that works for many, for a while.

Where `fleet_join_file` names a file, the server keeps a token in it and renews it every `join_token_ttl_s`; one that was
replaced works for as long again. Whoever can read the file may join as a new proxy of a name that is free, and may do
nothing else: it never takes the place of a proxy that is there. Containers of one composition share that file.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy.orm import Session as DbSession

from backup_server.credentials import new_join_token, token_hash
from backup_server.db.tables import Proxy, Setting, new_id
from backup_server.services import join_tokens
from backup_server.services.context import Context
from backup_server.up.options import write_private_text

ROW: Final = "fleet_tokens"
DESCRIPTION: Final = "joined with the fleet's token"


def renew(ctx: Context) -> bool:
    """A fresh token in the file when the one there is old, or not ours. Never asks to be called at once."""
    file = ctx.settings.fleet_join_file
    if not file:
        return False
    now = ctx.clock()
    life = timedelta(seconds=ctx.settings.join_token_ttl_s)
    with ctx.db() as s:
        held = [token for token in _held(s) if _until(token) > now]
        if held and Path(file).exists() and max(map(_until, held)) - now > life:
            return False
        token = new_join_token()
        fresh = {"hash": token_hash(token), "until": (now + 2 * life).isoformat()}
        s.merge(Setting(name=ROW, value=json.dumps([*held, fresh])))
    # After the commit: what is in the file works.
    write_private_text(Path(file), join_tokens.text_of(ctx, "", token, now) + "\n")
    return False


def admit(ctx: Context, s: DbSession, *, digest: str, name: str, now: datetime) -> None:
    """Where `digest` is that of a fleet's token and the name is free: a new proxy that waits for this very token.

    sqlalchemy's IntegrityError when another one takes the name at the same moment.
    """
    until = max((_until(one) for one in _held(s) if one["hash"] == digest), default=now)
    if until <= now:
        return
    if s.query(Proxy.id).filter_by(name=name).first() is not None:
        return
    s.add(
        Proxy(
            id=new_id(),
            name=name,
            description=DESCRIPTION,
            local=False,
            enabled=True,
            slots=ctx.settings.default_proxy_slots,
            modes=[],
            join_token_hash=digest,
            join_token_expires_at=until,
            facts={},
            created_at=now,
        )
    )
    s.flush()


def _held(s: DbSession) -> list[dict[str, Any]]:
    row = s.get(Setting, ROW)
    found: list[dict[str, Any]] = json.loads(row.value) if row is not None else []
    return found


def _until(token: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(token["until"])
