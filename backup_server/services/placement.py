"""Which proxy may take a disk task, and in which transport mode. Pure: values in, values out.

A candidate is a pair of proxy and mode. Each is accepted or refused with a reason; among the accepted
the best mode wins, then the least busy proxy. The decision with all candidates is stored with the task,
so that "why there" and "why not yet" can be answered later.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from proxy_worker.contracts.messages import TaskKind
from transports.base import TransportMode

RANKS: Final = {mode: rank for rank, mode in enumerate(TransportMode, start=1)}
"""1 is the best."""

DEFAULT_MODES: Final = tuple(mode for mode in TransportMode if mode is not TransportMode.NBD)
"""What a job that names no modes may use. NBD carries disk content in the clear, so a job has to ask for
it by name."""

NAMED_PROXIES: Final = 5
NAMED_CANDIDATES: Final = 32
"""How many candidates a stored decision names."""

FILE_MODE: Final = TransportMode.NBDSSL
"""Stands in the order of a task that opens no disk of vSphere; nothing reads it."""

WITHOUT_VSPHERE: Final = frozenset({TaskKind.RESTORE_DISK_TO_FILE.value, TaskKind.COPY_DISK.value})
"""Kinds of tasks that open no disk of vSphere: any proxy will do, in no mode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyFacts:
    """What placement knows of one proxy."""

    id: str
    name: str
    enabled: bool
    enrolled: bool
    online: bool
    stopping: bool
    slots: int
    used: int
    offered_modes: tuple[TransportMode, ...]
    allowed_modes: tuple[TransportMode, ...]
    """By the administrator; empty: all it offers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What tasks have in common that the same proxies can take in the same modes."""

    datastore: str
    proxies: tuple[str, ...]
    """Allowed proxy ids, sorted; empty: any."""
    modes: tuple[TransportMode, ...]
    """Allowed modes, best first; empty: no disk of vSphere is opened."""

    @property
    def key(self) -> str:
        """Short, stable name of this value."""
        text = json.dumps([self.datastore, list(self.proxies), [mode.value for mode in self.modes]])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A bound that several tasks share; `maximum` 0: none."""

    what: str
    """For people: "repository main"."""
    used: int
    maximum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    proxy_id: str
    proxy_name: str
    mode: TransportMode
    accepted: bool
    reason: str
    """Why it was refused; empty when it was accepted."""
    used: int
    slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    chosen: Candidate | None
    reason: str
    """For people: why this one, or why none."""
    candidates: tuple[Candidate, ...]

    def to_json(self) -> dict[str, Any]:
        """For the task's row. Of a large fleet the best candidates are named and the others counted by
        reason: with 200 proxies and 30,000 tasks a night, all of them would be a gigabyte.
        """
        ordered = sorted(
            self.candidates, key=lambda c: (c != self.chosen, not c.accepted, _preference(c))
        )
        named, rest = ordered[:NAMED_CANDIDATES], ordered[NAMED_CANDIDATES:]
        return {
            "proxy": self.chosen.proxy_id if self.chosen else None,
            "mode": self.chosen.mode.value if self.chosen else None,
            "reason": self.reason,
            "others": dict(Counter(candidate.reason or "accepted" for candidate in rest)),
            "candidates": [
                {
                    "proxy": candidate.proxy_id,
                    "name": candidate.proxy_name,
                    "mode": candidate.mode.value,
                    "accepted": candidate.accepted,
                    "reason": candidate.reason,
                    "used": candidate.used,
                    "slots": candidate.slots,
                }
                for candidate in named
            ],
        }


def wish_of(
    kind: str, datastore: str, allowed_proxies: Iterable[str], allowed_modes: Iterable[str]
) -> Wish:
    """The wish of one task. Modes of a newer release that this one does not know are left out."""
    if kind in WITHOUT_VSPHERE:
        return Wish(datastore=datastore, proxies=tuple(sorted(allowed_proxies)), modes=())
    asked = set(allowed_modes)
    modes = tuple(mode for mode in TransportMode if mode.value in asked) if asked else DEFAULT_MODES
    return Wish(datastore=datastore, proxies=tuple(sorted(allowed_proxies)), modes=modes)


def reach(proxy: ProxyFacts, wish: Wish) -> TransportMode | None:
    """The best mode in which the proxy reaches the wish, whether it is free or not; None: not at all."""
    for mode in wish.modes or (FILE_MODE,):
        if not _out_of_reach(proxy, wish, mode):
            return mode
    return None


def _out_of_reach(proxy: ProxyFacts, wish: Wish, mode: TransportMode) -> str:
    if wish.proxies and proxy.id not in wish.proxies:
        return "the job names other proxies"
    if not proxy.enabled:
        return "the proxy is disabled"
    if not proxy.enrolled:
        return "the proxy has not enrolled yet"
    if not wish.modes:
        return ""
    if mode not in proxy.offered_modes:
        return f"the proxy does not offer {mode.value}"
    if proxy.allowed_modes and mode not in proxy.allowed_modes:
        return f"{mode.value} is switched off for this proxy"
    return ""


def _not_now(proxy: ProxyFacts) -> str:
    if not proxy.online:
        return "the proxy is offline"
    if proxy.stopping:
        return "the proxy is stopping"
    if proxy.used >= proxy.slots:
        return f"all {proxy.slots} task slots are taken"
    return ""


def decide(
    wish: Wish,
    proxies: Sequence[ProxyFacts],
    limits: Sequence[Limit],
    *,
    claimed_by: str | None = None,
) -> Decision:
    """Judge every pair of proxy and mode.

    With `claimed_by` (a proxy whose claim is to be confirmed) only that proxy can be chosen; the others
    are listed with what spoke for or against them.
    """
    full = [
        f"{limit.what} has all {limit.maximum} tasks it may have"
        for limit in limits
        if limit.maximum and limit.used >= limit.maximum
    ]
    # A mode that no proxy offers would be refused for each of them in the same words.
    offered = {mode for proxy in proxies for mode in proxy.offered_modes}
    modes = [mode for mode in wish.modes if mode in offered] or wish.modes or (FILE_MODE,)
    candidates = tuple(_judge(proxy, wish, mode, full) for proxy in proxies for mode in modes)
    eligible = [
        candidate
        for candidate in candidates
        if candidate.accepted and claimed_by in (None, candidate.proxy_id)
    ]
    if not eligible:
        return Decision(chosen=None, reason=_why_none(candidates), candidates=candidates)
    chosen = min(eligible, key=_preference)
    return Decision(
        chosen=chosen,
        reason=f"{chosen.proxy_name} by {chosen.mode.value}: best mode with a free slot, "
        f"{chosen.used} of {chosen.slots} slots taken",
        candidates=candidates,
    )


def _judge(proxy: ProxyFacts, wish: Wish, mode: TransportMode, full: Sequence[str]) -> Candidate:
    reason = _out_of_reach(proxy, wish, mode) or _not_now(proxy) or "; ".join(full)
    return Candidate(
        proxy_id=proxy.id,
        proxy_name=proxy.name,
        mode=mode,
        accepted=not reason,
        reason=reason,
        used=proxy.used,
        slots=proxy.slots,
    )


def _preference(candidate: Candidate) -> tuple[int, float, str]:
    return (
        RANKS[candidate.mode],
        candidate.used / max(1, candidate.slots),
        candidate.proxy_name,
    )


def _why_none(candidates: Sequence[Candidate]) -> str:
    if not candidates:
        return "there is no proxy; add one with: vmhaul proxy add"
    by_proxy: dict[str, str] = {}
    for candidate in candidates:
        by_proxy.setdefault(candidate.proxy_name, candidate.reason or "not the one that claimed it")
    by_reason: dict[str, list[str]] = {}
    for name, reason in by_proxy.items():
        by_reason.setdefault(reason, []).append(name)
    return "; ".join(f"{_list(names)}: {reason}" for reason, names in by_reason.items())


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMED_PROXIES])
    more = len(names) - NAMED_PROXIES
    return f"{shown} and {more} more" if more > 0 else shown
