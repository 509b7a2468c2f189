"""When a task that waits could go on: a time where one is known, else the event. For people. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from backup_server.services.limits import PROXY, Running
from backup_server.services.placement import Decision, Limit
from backup_server.services.shapes import when
from backup_server.services.surveys import ProxyFacts
from transports.base import TransportMode

MEASURED_EVERY_S: Final = 20.0
"""Read latency of datastores."""
_NAMED: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    what: str
    at: datetime | None = None
    """None: nobody knows."""

    def to_json(self) -> dict[str, Any]:
        return {"what": self.what, "at": when(self.at)}


def prospects(
    decision: Decision,
    limits: Sequence[Limit],
    proxies: Sequence[ProxyFacts],
    running: Sequence[Running],
    *,
    now: datetime,
    window_opens: datetime | None = None,
    not_before: datetime | None = None,
) -> list[Prospect]:
    """Everything that has to happen or would be enough, the certain first."""
    if window_opens is not None:
        return [Prospect(what="the job's window opens", at=window_opens)]
    found: list[Prospect] = []
    if not_before is not None and not_before > now:
        found.append(Prospect(what="the pause after the last failure ends", at=not_before))
    if decision.chosen is not None:
        return found or [
            Prospect(
                what=f"the next round of the dispatcher: {decision.chosen.proxy_name} has room", at=now
            )
        ]
    reaching = {c.proxy_id for c in decision.candidates if c.reaches}
    modes: set[TransportMode | None] = {c.mode for c in decision.candidates if c.reaches}
    modes = modes or {None}
    found += [
        _room(limit, running, now) for limit in limits if all(limit.is_full(mode) for mode in modes)
    ]
    able = [proxy for proxy in proxies if proxy.id in reaching]
    found += _slots(able, running)
    away = [proxy.name for proxy in able if not proxy.online]
    found += [Prospect(what=f"proxy {name} is heard again") for name in away[:_NAMED]]
    stopping = [proxy.name for proxy in able if proxy.online and proxy.stopping]
    found += [
        Prospect(what=f"the worker of proxy {name} is started again") for name in stopping[:_NAMED]
    ]
    return found or [
        Prospect(what="a proxy is added or changed so that it can take the disk; see the reasons")
    ]


def _room(limit: Limit, running: Sequence[Running], now: datetime) -> Prospect:
    if limit.closed:
        return Prospect(
            what=f"{limit.what} is measured again, and is faster",
            at=now + timedelta(seconds=MEASURED_EVERY_S),
        )
    first = _first(one for one in running if limit.key in one.keys)
    if first is None:
        return Prospect(what=f"{limit.what} has room")
    return Prospect(
        what=f"{limit.what} has room: {first.title} ends, or another of its {limit.used} tasks",
        at=first.ends_at,
    )


def _slots(able: Sequence[ProxyFacts], running: Sequence[Running]) -> list[Prospect]:
    """The slot that is likely to be free first, of the proxies that only lack one."""
    full = {
        f"{PROXY}{proxy.id}": proxy.name
        for proxy in able
        if proxy.online and not proxy.stopping and 0 < proxy.slots <= proxy.used
    }
    first = _first(one for one in running if one.keys and one.keys[0] in full)
    if first is None:
        return [Prospect(what=f"a slot of {name} is free") for name in list(full.values())[:_NAMED]]
    others = len(full) - 1
    more = (
        f", or one of {others} other proxies"
        if others > 1
        else ", or of another proxy"
        if others
        else ""
    )
    return [
        Prospect(
            what=f"a slot of {full[first.keys[0]]} is free: {first.title} ends{more}", at=first.ends_at
        )
    ]


def _first(running: Iterable[Running]) -> Running | None:
    """The one that ends first, as far as that is known."""
    some = list(running)
    known = [one for one in some if one.ends_at is not None]
    if known:
        return min(known, key=lambda one: (one.ends_at, one.task_id))
    return some[0] if some else None
