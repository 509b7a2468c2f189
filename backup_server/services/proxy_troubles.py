"""What is wrong with a proxy as a whole, so that it gets no new tasks: a clock that is far off, a release that is not
understood, two machines with one identity, a flood of the broker.

Kept in `proxies.facts` beside what heartbeats say, and in words in `proxies.state_note`. A trouble ends when its
reason does; those of the identity and of a flood end when the proxy joins again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy.orm import Session as DbSession

from backup_server.db.tables import Proxy
from backup_server.services import events
from proxy_worker.contracts.older import PRESENT, release_of

TROUBLES: Final = "troubles"
"""In `proxies.facts`: words by kind."""
BOOTS: Final = "boots"
"""In `proxies.facts`: which selves of the worker were heard of, see `follow_boots`."""
CLOCK: Final = "clock"
VERSION: Final = "version"
IDENTITY: Final = "identity"
FLOOD: Final = "flood"
"""It filled the broker; it has no user there until it joins again."""
MOST_CLOCK_OFFSET_S: Final = 240.0
"""Envelopes are believed up to 300 s; what is left is for what waits on the way."""
SKEW_RELEASES: Final = 1
_BOOTS_KEPT: Final = 8
_RETURNS: Final = 2


def words_of(facts: Mapping[str, Any]) -> str:
    """All troubles for people; empty: none, it may have tasks."""
    found: dict[str, str] = facts.get(TROUBLES) or {}
    return "; ".join(found[kind] for kind in sorted(found))


def version_trouble(name: str, version: str) -> str:
    """Empty for a release that this server understands: its own, and one before or after it."""
    theirs = release_of(version)
    if theirs[0] == PRESENT[0] and abs(theirs[1] - PRESENT[1]) <= SKEW_RELEASES:
        return ""
    older = theirs < PRESENT
    return (
        f"it runs release {version} and the server {PRESENT[0]}.{PRESENT[1]}: one release of difference is "
        "understood, not more; upgrade "
        + (f"it with `vmhaul proxy upgrade {name}`" if older else "the server")
    )


def clock_trouble(offset_s: float) -> str:
    if abs(offset_s) <= MOST_CLOCK_OFFSET_S:
        return ""
    way = "ahead of" if offset_s > 0 else "behind"
    return (
        f"its clock is {abs(offset_s):.0f} s {way} the server's; its messages are believed up to 300 s: "
        "let NTP set both clocks"
    )


def identity_trouble(name: str) -> str:
    return (
        "two machines have its identity: one is a clone of the other, or two workers use one directory. Stop "
        f"all of them, then let the right one join again with a token of `vmhaul proxy token {name}`"
    )


def flood_trouble(name: str, what: str) -> str:
    """`what`: in which way, with figures."""
    return (
        f"it filled the broker ({what}) and was cut off: its broker user and what it had written there were deleted. "
        f"Look at that machine; when it is in order, let it join again with a token of `vmhaul proxy token {name}`"
    )


def is_cut_off(facts: Mapping[str, Any]) -> bool:
    """Whether it has no user at the broker until it joins again."""
    return FLOOD in (facts.get(TROUBLES) or {})


def follow_boots(kept: Mapping[str, Any], heard: Iterable[tuple[str, float]]) -> dict[str, Any]:
    """What is known of the selves of a worker after these were heard, in order, each with the time on its clock.

    `{"known": [[boot id, its clock at first], ...], "returns": n, "armed": bool}`. A worker that is started anew
    names a new boot id and never an old one again. Two workers take turns: a replaced one speaks, with a clock
    later than the first word of the one that replaced it (so it was not merely late), then the newer one, then
    the replaced one again. One return may be an accident of a network that comes back; `returns` counts those
    with the newer one between them.
    """
    known: list[list[Any]] = [list(one) for one in kept.get("known", ())]
    returns, armed = int(kept.get("returns", 0)), bool(kept.get("armed", True))
    for boot_id, clock_s in heard:
        if not known:
            known.append([boot_id, clock_s])
        elif boot_id == known[-1][0]:
            armed = True
        elif any(boot_id == one[0] for one in known):
            if clock_s > float(known[-1][1]) and armed:
                returns, armed = returns + 1, False
        else:
            known.append([boot_id, clock_s])
            armed = True
    return {"known": known[-_BOOTS_KEPT:], "returns": returns, "armed": armed}


def is_replaced(boots: Mapping[str, Any], boot_id: str) -> bool:
    """Whether that self of the worker was heard of before the present one."""
    return any(boot_id == one[0] for one in boots.get("known", ())[:-1])


def has_twin(boots: Mapping[str, Any]) -> bool:
    return int(boots.get("returns", 0)) >= _RETURNS


def note(s: DbSession, row: Proxy, found: Mapping[str, str], now: datetime) -> bool:
    """Write down what was found, by kind; an empty text ends that trouble, kinds that are not named stay.

    Answers whether anything changed, which is said once, as an event.
    """
    before: dict[str, str] = row.facts.get(TROUBLES) or {}
    after = {kind: text for kind, text in {**before, **found}.items() if text}
    # Figures inside of the words (a clock that drifts) are no news.
    row.facts = {**row.facts, TROUBLES: after}
    row.state_note = words_of(row.facts)
    for kind in sorted(after.keys() - before.keys()):
        text = f"proxy {row.name} gets no new tasks: {after[kind]}"
        events.record(
            s,
            now,
            f"proxy.{kind}",
            text,
            level=events.WARNING,
            ids={"proxy_id": row.id, "proxy": row.name},
        )
    for kind in sorted(before.keys() - after.keys()):
        text = f"proxy {row.name} may have tasks again: {kind} is in order"
        events.record(s, now, f"proxy.{kind}", text, ids={"proxy_id": row.id, "proxy": row.name})
    return after.keys() != before.keys()


def forget(row: Proxy) -> None:
    """For a proxy that joins again: a new identity has no past."""
    row.facts = {name: value for name, value in row.facts.items() if name not in {TROUBLES, BOOTS}}
    row.state_note = ""
