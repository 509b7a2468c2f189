"""The proxies' ends of traffic: the addresses that they told of, kept between questions."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.tables import Proxy
from backup_server.services.lookups import NONE, Addresses
from backup_server.services.proxy_facts import addresses_of


class ProxyEnds:
    """What a proxy found is read again only when it looked around again."""

    def __init__(self) -> None:
        self._looked_at: dict[str, datetime | None] = {}
        self._found: dict[str, Addresses] = {}

    def read(self, s: DbSession) -> dict[str, Addresses]:
        """As of now, by proxy id."""
        seen = s.execute(sa.select(Proxy.id, Proxy.connections_at)).all()
        for proxy_id, at in seen:
            if proxy_id not in self._found or self._looked_at.get(proxy_id) != at:
                told = s.scalar(sa.select(Proxy.connections).where(Proxy.id == proxy_id)) or {}
                self._looked_at[proxy_id] = at
                self._found[proxy_id] = addresses_of(str(text) for text in told.get("addresses", ()))
        return {proxy_id: self._found[proxy_id] for proxy_id, _ in seen}

    def of(self, proxy_id: str) -> Addresses:
        """As of the last `read`; nothing of a proxy that is not known."""
        return self._found.get(proxy_id, NONE)
