"""The proxies' ends of traffic, as they told of them, kept between questions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.tables import Proxy
from backup_server.services.task_ends import NOBODY, ProxyEnd, proxy_end


class ProxyEnds:
    """What a proxy found is read again only when it looked around again."""

    def __init__(self) -> None:
        self._looked_at: dict[str, datetime | None] = {}
        self._found: dict[str, ProxyEnd] = {}

    def read(self, s: DbSession) -> dict[str, ProxyEnd]:
        """As of now, by proxy id."""
        seen = s.execute(sa.select(Proxy.id, Proxy.connections_at)).all()
        for proxy_id, at in seen:
            if proxy_id not in self._found or self._looked_at.get(proxy_id) != at:
                told = s.scalar(sa.select(Proxy.connections).where(Proxy.id == proxy_id)) or {}
                self._looked_at[proxy_id] = at
                self._found[proxy_id] = _end_of(told)
        return {proxy_id: self._found[proxy_id] for proxy_id, _ in seen}

    def of(self, proxy_id: str) -> ProxyEnd:
        """As of the last `read`; nothing of a proxy that is not known."""
        return self._found.get(proxy_id, NOBODY)


def _end_of(told: Mapping[str, Any]) -> ProxyEnd:
    """Of a stored ConnectionsReport, of this release or another."""
    connections = told.get("connections", ())
    return proxy_end(
        (str(text) for text in told.get("addresses", ())),
        [(str(one.get("datastore", "")), map(str, one.get("portals", ()))) for one in connections],
    )
