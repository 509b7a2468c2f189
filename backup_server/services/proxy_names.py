"""By which names workers go. A worker calls itself by the name with which it joined, also after the proxy was renamed,
and its control mailbox at the broker is called after it: so no other proxy may have that name meanwhile, or the
two could read what is for the other and fill the other's keys.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.tables import Proxy
from backup_server.errors import ConflictError
from backup_server.services.proxy_settings import ENROLLED_AS


def refuse_name_in_use(s: DbSession, row: Proxy) -> None:
    """ConflictError when the worker of another proxy goes by the name of `row`.

    The row's name is written first: whoever gives or takes the same name at that moment is waited for then, and seen.
    """
    s.flush()
    others = s.execute(
        sa.select(Proxy.name, Proxy.settings).where(Proxy.id != row.id, Proxy.signing_key.is_not(None))
    )
    for other in others:
        if other.settings.get(ENROLLED_AS) == row.name:
            raise ConflictError(
                f"the worker of proxy {other.name!r} still goes by the name {row.name!r}, with which it joined; give "
                f"another name, or let that one join again first (`vmhaul proxy token {other.name}`)"
            )
