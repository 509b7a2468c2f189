"""Traffic rules: how fast data may move between two sets of addresses, and whether in the clear.

| option | what | default |
|---|---|---|
| windows | `[{"window": …, "rate_bytes_per_s": …}]`: other rates in weekly hours (services/windows.py); the first that is open counts, null is no limit | none |
| restores | restores are held to the rate as well | false |

A rule covers what moves between an address of its source and one of its target, in either direction. Among several
that cover a task the lowest rate wins; what a rule allows is shared by all tasks that it covers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError as DuplicateError
from sqlalchemy.orm import Session as DbSession

from backup_server.db.tables import TrafficRule, new_id
from backup_server.errors import ConflictError, InvalidError
from backup_server.services import windows
from backup_server.services.context import Context
from backup_server.services.networks import (
    FORM,
    Address,
    Range,
    between,
    normal_form,
    parse_ranges,
)
from backup_server.services.shapes import Fields, by_ref, when

WINDOWS: Final = "windows"
RESTORES: Final = "restores"
LEAST_BYTES_PER_S: Final = 64_000
"""Half a megabit: below, a disk would take months while its VM's snapshot grows."""
MOST_BYTES_PER_S: Final = 10**12
_LONGEST_LIST: Final = 200
_RATE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(bit|b)(?:/s|ps)?", re.IGNORECASE)
_RATE_FORM: Final = (
    "a rate such as 200Mbit, 50MB/s or 1Gbit, a number of bytes per second, or unlimited"
)
UNLIMITED: Final = "unlimited"


# ---- what it means --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherRate:
    window: windows.Window
    rate_bytes_per_s: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule as the scheduler uses it."""

    id: str
    name: str
    source: tuple[Range, ...] = ()
    target: tuple[Range, ...] = ()
    rate_bytes_per_s: int | None
    windows: tuple[OtherRate, ...]
    restores: bool
    encrypt: bool = False
    proxy_id: str = ""
    """The proxy whose own it is (services/proxy_rates.py): instead of addresses."""

    def rate_at(self, now: datetime) -> int | None:
        """Bytes a second for all that it covers; None: not limited now."""
        for other in self.windows:
            if windows.is_open(other.window, now):
                return other.rate_bytes_per_s
        return self.rate_bytes_per_s

    def covers(self, here: Collection[Address], there: Collection[Address]) -> bool:
        return between(self.source, self.target, here, there)


def enabled_rules(s: DbSession) -> list[Rule]:
    rows = s.scalars(
        sa.select(TrafficRule).where(TrafficRule.enabled.is_(True)).order_by(TrafficRule.name)
    )
    return [_rule(row) for row in rows]


def _rule(row: TrafficRule) -> Rule:
    return Rule(
        id=row.id,
        name=row.name,
        source=parse_ranges(row.source),
        target=parse_ranges(row.target),
        rate_bytes_per_s=row.rate_bytes_per_s,
        windows=other_rates(row.options.get(WINDOWS, [])),
        restores=bool(row.options.get(RESTORES, False)),
        encrypt=row.encrypt,
    )


def other_rates(kept: Iterable[Mapping[str, Any]]) -> tuple[OtherRate, ...]:
    """Out of what `check_windows` made of a request."""
    return tuple(
        OtherRate(window=one["window"], rate_bytes_per_s=one["rate_bytes_per_s"]) for one in kept
    )


def parse_rate(value: Any) -> int | None:
    """Bytes a second of 50000000, "200Mbit", "50MB/s"; None for null and "unlimited". ValueError."""
    if value is None or (isinstance(value, str) and value.strip().lower() == UNLIMITED):
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"must be {_RATE_FORM}")  # noqa: TRY004 - as every other check
    number: float = value if isinstance(value, int) else _typed_rate(value)
    if not LEAST_BYTES_PER_S <= number <= MOST_BYTES_PER_S:
        raise ValueError(f"must be from {LEAST_BYTES_PER_S} bytes a second (512 kbit) to 1 TB/s")
    return int(number)


def _typed_rate(text: str) -> float:
    if text.strip().isdecimal():
        return float(text)
    match = _RATE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not {_RATE_FORM}")
    base = 1024.0 if match[3] else 1000.0
    power = " kmgt".index(match[2].lower() or " ")
    factor = base**power / (8 if match[4].lower() == "bit" or match[4] == "b" else 1)
    return float(float(match[1]) * factor)


def rate_text(bytes_per_s: int | None) -> str:
    """For people: 25000000 -> "200 Mbit/s"."""
    if bytes_per_s is None:
        return UNLIMITED
    value = float(bytes_per_s * 8)
    for unit in ("bit/s", "kbit/s", "Mbit/s", "Gbit/s"):
        if value < 1000 or unit == "Gbit/s":  # noqa: PLR2004 - the unit's own base
            return f"{value:g} {unit}"
        value /= 1000
    raise AssertionError("unreachable: the last unit takes everything")


# ---- what doors give and get ----------------------------------------------------------------------


def list_all(ctx: Context) -> list[dict[str, Any]]:
    now = ctx.clock()
    with ctx.db.read() as s:
        rows = s.scalars(sa.select(TrafficRule).order_by(TrafficRule.name))
        return [_shape(row, now) for row in rows]


def get(ctx: Context, ref: str) -> dict[str, Any]:
    with ctx.db.read() as s:
        return _shape(by_ref(s, TrafficRule, ref), ctx.clock())


def add(ctx: Context, data: Mapping[str, Any]) -> dict[str, Any]:
    """InvalidError names every field that cannot be accepted, ConflictError a name that is taken."""
    values = _values(data)
    try:
        with ctx.db() as s:
            row = TrafficRule(id=new_id(), created_at=ctx.clock(), **values)
            s.add(row)
    except DuplicateError:
        raise _taken(values["name"]) from None
    ctx.wake_dispatcher.set()
    return get(ctx, row.id)


def edit(ctx: Context, ref: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Change what is named."""
    with ctx.db.read() as s:
        row = by_ref(s, TrafficRule, ref)
        old = _as_data(row)
    values = _values({**old, **changes})
    try:
        with ctx.db() as s:
            stored = s.get_one(TrafficRule, row.id)
            for name, value in values.items():
                setattr(stored, name, value)
    except DuplicateError:
        raise _taken(values["name"]) from None
    ctx.wake_dispatcher.set()
    return get(ctx, row.id)


def remove(ctx: Context, ref: str) -> None:
    with ctx.db() as s:
        s.delete(by_ref(s, TrafficRule, ref))
    ctx.wake_dispatcher.set()


def _taken(name: str) -> ConflictError:
    return ConflictError(f"a traffic rule named {name!r} exists already; give another name")


def _as_data(row: TrafficRule) -> dict[str, Any]:
    return {
        "name": row.name,
        "enabled": row.enabled,
        "source": row.source,
        "target": row.target,
        "rate": row.rate_bytes_per_s,
        "encrypt": row.encrypt,
        RESTORES: row.options.get(RESTORES, False),
        WINDOWS: [
            {"window": one["window"], "rate": one["rate_bytes_per_s"]}
            for one in row.options.get(WINDOWS, [])
        ],
    }


def _values(data: Mapping[str, Any]) -> dict[str, Any]:
    given = Fields(data)
    values = {
        "name": given.path_name(),
        "enabled": given.flag("enabled", default=True),
        "source": given.checked("source", _check_ranges),
        "target": given.checked("target", _check_ranges),
        "rate_bytes_per_s": given.checked("rate", parse_rate),
        "encrypt": given.flag("encrypt", default=False),
        "options": {
            RESTORES: given.flag(RESTORES, default=False),
            WINDOWS: given.checked(WINDOWS, check_windows, default=[]),
        },
    }
    given.finish("the traffic rule")
    limits = [
        values["rate_bytes_per_s"],
        *(one["rate_bytes_per_s"] for one in values["options"][WINDOWS]),
    ]
    if not values["encrypt"] and all(limit is None for limit in limits):
        raise InvalidError(
            "the traffic rule would do nothing: give it a rate, hours with a rate, or let it ask for encryption",
            details={"rate": "is needed where the rule does not ask for encryption"},
        )
    return values


def _check_ranges(value: Any) -> list[str]:
    if not isinstance(value, list | tuple) or not value or len(value) > _LONGEST_LIST:
        raise ValueError(f"must be a list of 1 to {_LONGEST_LIST} texts, each {FORM}")
    if not all(isinstance(one, str) for one in value):
        raise ValueError(f"must hold texts, each {FORM}")
    return list(dict.fromkeys(normal_form(one) for one in value))


def check_windows(value: Any) -> list[dict[str, Any]]:
    """Hours with rates as they are stored; ValueError."""
    if not isinstance(value, list | tuple) or len(value) > _LONGEST_LIST:
        raise ValueError("must be a list of {window, rate}")
    found: list[dict[str, Any]] = []
    for one in value:
        if not isinstance(one, Mapping) or set(one) != {"window", "rate"}:
            raise ValueError("must be a list of {window, rate}")
        window = windows.check_window(one["window"])
        found.append({"window": window, "rate_bytes_per_s": parse_rate(one["rate"])})
    return found


def _shape(row: TrafficRule, now: datetime) -> dict[str, Any]:
    rule = _rule(row)
    rate_now = rule.rate_at(now)
    return {
        "id": row.id,
        "name": row.name,
        "enabled": row.enabled,
        "source": row.source,
        "target": row.target,
        "rate_bytes_per_s": row.rate_bytes_per_s,
        "rate": rate_text(row.rate_bytes_per_s),
        "windows": shape_of_windows(rule.windows),
        "rate_now_bytes_per_s": rate_now,
        "rate_now": rate_text(rate_now),
        "restores": rule.restores,
        "encrypt": row.encrypt,
        "created_at": when(row.created_at),
    }


def shape_of_windows(others: Iterable[OtherRate]) -> list[dict[str, Any]]:
    return [
        {
            "window": one.window,
            "hours": windows.describe(one.window),
            "rate_bytes_per_s": one.rate_bytes_per_s,
            "rate": rate_text(one.rate_bytes_per_s),
        }
        for one in others
    ]
