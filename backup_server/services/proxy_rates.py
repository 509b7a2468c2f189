"""A rate of a proxy's own: how fast all of its tasks together may move data over the network.

| setting | what | default |
|---|---|---|
| rate_limit_bytes_per_s | for all of its tasks together; null: no limit | none |
| rate_windows | `[{"window": …, "rate_bytes_per_s": …}]`, as in a traffic rule | none |
| rate_restores | restores are held to it as well | false |

It holds as a traffic rule does whose source is the proxy and whose target is every other machine: beside the rules, so
the lowest rate wins, and shared by the tasks that it covers.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.tables import Proxy
from backup_server.services.shapes import Fields
from backup_server.services.traffic_rules import (
    OtherRate,
    Rule,
    check_windows,
    other_rates,
    parse_rate,
    rate_text,
    shape_of_windows,
)

LIMIT: Final = "rate_limit_bytes_per_s"
WINDOWS: Final = "rate_windows"
RESTORES: Final = "rate_restores"
NAMES: Final = frozenset({LIMIT, WINDOWS, RESTORES})
ASKED_AS: Final = "rate_limit"
"""How a request names the limit: a number, or a text such as "400Mbit"."""


def own_rules(s: DbSession) -> list[Rule]:
    """Of the proxies that have a rate of their own."""
    rows = s.execute(sa.select(Proxy.id, Proxy.name, Proxy.settings).order_by(Proxy.name))
    return [
        rule_of(row.id, row.name, row.settings)
        for row in rows
        if row.settings.get(LIMIT) is not None or row.settings.get(WINDOWS)
    ]


def rule_of(proxy_id: str, name: str, settings: Mapping[str, Any]) -> Rule:
    """What its settings say, as a rule."""
    return Rule(
        id=f"proxy/{proxy_id}",
        name=f"of proxy {name}",
        proxy_id=proxy_id,
        rate_bytes_per_s=settings.get(LIMIT),
        windows=_windows(settings),
        restores=bool(settings.get(RESTORES, False)),
    )


def _windows(settings: Mapping[str, Any]) -> tuple[OtherRate, ...]:
    return other_rates(settings.get(WINDOWS) or ())


def shape(settings: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """For people and programs."""
    rule = rule_of("", "", settings)
    rate_now = rule.rate_at(now)
    return {
        LIMIT: rule.rate_bytes_per_s,
        "rate_limit": rate_text(rule.rate_bytes_per_s),
        WINDOWS: shape_of_windows(rule.windows),
        RESTORES: rule.restores,
        "rate_now_bytes_per_s": rate_now,
        "rate_now": rate_text(rate_now),
    }


def changes(given: Fields) -> dict[str, Any]:
    """Those that the request names, checked; problems go into `given`."""
    found: dict[str, Any] = {}
    if given.has(ASKED_AS):
        found[LIMIT] = given.checked(ASKED_AS, parse_rate)
    if given.has(WINDOWS):
        found[WINDOWS] = given.checked(WINDOWS, lambda value: check_windows(value or []))
    if given.has(RESTORES):
        found[RESTORES] = given.flag(RESTORES)
    return found
