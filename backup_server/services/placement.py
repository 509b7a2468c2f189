"""Which proxy may take a disk task, and in which transport mode. Pure: values in, values out.

A candidate is a pair of proxy and mode. Each is accepted or refused with a reason; among the accepted
the best mode wins, then the least busy proxy. The decision with all candidates is stored with the task,
so that "why there" and "why not yet" can be answered later.

What every proxy reaches, whatever is busy, is the survey (`surveys`); the **decision** is what of it is free at this
moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from backup_server.services.surveys import (
    RANKS,
    ProxyFacts,
    Survey,
    claim_rank,
    grouped_by_reason,
    not_now,
    survey,
)
from backup_server.services.wishes import FILE_MODE, ModeRefused, Wish
from transports.base import TransportMode
from transports.rules import NETWORK_MODES, judge_proxy

NAMED_CANDIDATES: Final = 12
"""How many candidates a stored decision names: 30,000 of them are written in a night."""

ACCEPTED: Final = "accepted"
"""Where candidates are counted by reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A bound that several tasks share; `maximum` 0: none."""

    what: str
    """For people: "repository main"."""
    used: int
    maximum: int
    modes: frozenset[TransportMode] | None = None
    """What counts; None: all modes."""
    key: str = ""
    """Its name in the claim index."""
    closed: str = ""
    """Why it lets nothing new in, whatever is used; empty: it does."""

    def is_full(self, mode: TransportMode | None) -> bool:
        """Whether it stands in the way of a task in that mode; None: of one that opens no disk of vSphere."""
        counts = self.modes is None or mode in self.modes
        return counts and bool(self.closed or (self.maximum and self.used >= self.maximum))

    @property
    def why(self) -> str:
        return self.closed or f"{self.what} has all {self.maximum} tasks it may have"


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
    reaches: bool = True
    """False: it cannot take the disk in this mode, however idle it is."""
    near: bool = True
    """False: in this mode another proxy is nearer to the disk, and preferred."""

    @property
    def rank(self) -> int:
        """As `claim_rank`."""
        return claim_rank(self.mode, near=self.near)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    chosen: Candidate | None
    reason: str
    """For people: why this one, or why none."""
    candidates: tuple[Candidate, ...]
    fallbacks: tuple[TransportMode, ...] = ()
    """Modes in which the chosen proxy may go on, in their order."""
    refused: tuple[ModeRefused, ...] = ()
    """Modes that come into question for no proxy."""
    remarks: tuple[str, ...] = ()
    """Of the chosen pair: worth knowing, and refuses nothing."""
    warning: str = ""
    """What an administrator set cannot be followed here; empty: it is."""
    others: Mapping[str, int] = field(default_factory=dict)
    """Candidates that are not listed, counted by reason."""

    def to_json(self) -> dict[str, Any]:
        """For the task's row. Of a large fleet the best candidates are named and the others counted by
        reason: with 200 proxies and 30,000 tasks a night, all of them would be a gigabyte.
        """
        ordered = sorted(
            self.candidates, key=lambda c: (c != self.chosen, not c.accepted, preference(c))
        )
        named, rest = ordered[:NAMED_CANDIDATES], ordered[NAMED_CANDIDATES:]
        return {
            "proxy": self.chosen.proxy_id if self.chosen else None,
            "mode": self.chosen.mode.value if self.chosen else None,
            "reason": self.reason,
            "fallbacks": [mode.value for mode in self.fallbacks],
            "remarks": [*self.remarks, *((self.warning,) if self.warning else ())],
            "modes": refused_json(self.refused),
            "others": dict(Counter(said_of(candidate) for candidate in rest) + Counter(self.others)),
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


def said_of(candidate: Candidate) -> str:
    return candidate.reason or ACCEPTED


def refused_json(refused: Sequence[ModeRefused]) -> list[dict[str, str]]:
    return [{"mode": one.mode.value, "reason": one.reason} for one in refused]


# ---- what is free now -----------------------------------------------------------------------------


def decide(
    wish: Wish,
    proxies: Sequence[ProxyFacts],
    limits: Sequence[Limit],
    *,
    claimed_by: str | None = None,
    known: Survey | None = None,
    refused: Sequence[ModeRefused] = (),
) -> Decision:
    """Judge every pair of proxy and mode.

    With `claimed_by` (a proxy whose claim is to be confirmed) only that proxy can be chosen; the others
    are listed with what spoke for or against them. `known`: the survey of this wish and these proxies, where
    the caller has it. `refused`: modes that are not in the wish, for the record.
    """
    if wish.impossible:
        return Decision(chosen=None, reason=wish.impossible, candidates=(), refused=tuple(refused))
    seen = known or survey(wish, proxies)
    modes = modes_in_question(wish, proxies)
    full = {mode: _full(limits, mode if wish.modes else None) for mode in modes}
    candidates = tuple(judge_pair(proxy, mode, seen, full[mode]) for proxy in proxies for mode in modes)
    eligible = [
        candidate
        for candidate in candidates
        if candidate.accepted and claimed_by in (None, candidate.proxy_id)
    ]
    unasked = (*refused, *not_offered(wish, modes))
    if not eligible:
        reason = _why_none(candidates)
        return Decision(chosen=None, reason=reason, candidates=candidates, refused=unasked)
    chosen = choose(eligible)
    assert chosen is not None
    return Decision(
        chosen=chosen,
        reason=why_chosen(chosen, wish),
        candidates=candidates,
        fallbacks=seen.after(chosen.proxy_id, chosen.mode) if wish.modes else (),
        refused=unasked,
        remarks=remarks_of(chosen, wish, proxies),
        warning=seen.warning,
    )


def modes_in_question(wish: Wish, proxies: Sequence[ProxyFacts]) -> Sequence[TransportMode]:
    # A mode that no proxy offers would be refused for each of them in the same words.
    offered = {mode for proxy in proxies for mode in proxy.offered_modes}
    return [mode for mode in wish.modes if mode in offered] or wish.modes or (FILE_MODE,)


def not_offered(wish: Wish, modes: Sequence[TransportMode]) -> list[ModeRefused]:
    return [
        ModeRefused(mode=mode, reason="no proxy offers it") for mode in wish.modes if mode not in modes
    ]


def why_chosen(chosen: Candidate, wish: Wish) -> str:
    return (
        f"{chosen.proxy_name} by {chosen.mode.value}: best mode with a free slot"
        f"{_why_near(chosen, wish)}, {chosen.used} of {chosen.slots} slots taken"
    )


def _why_near(chosen: Candidate, wish: Wish) -> str:
    said = []
    if chosen.proxy_id in wish.near:
        said.append("set to be near the repository")
    if wish.reach is not None and chosen.near:
        if chosen.mode in NETWORK_MODES and wish.reach.networks:
            said.append(f"in the host's network {', '.join(wish.reach.networks)}")
        if chosen.mode is TransportMode.HOTADD and wish.reach.data_hosts:
            said.append("on a host that has most of the VM's data")
    return "".join(f", {one}" for one in said)


def remarks_of(chosen: Candidate, wish: Wish, proxies: Sequence[ProxyFacts]) -> tuple[str, ...]:
    """What the rules remark of a proxy that may take the disk."""
    machine = next(proxy.machine for proxy in proxies if proxy.id == chosen.proxy_id)
    if wish.reach is None or machine is None:
        return ()
    return tuple(one.text for one in judge_proxy(chosen.mode, wish.reach, machine).remarks)


def choose(candidates: Iterable[Candidate], taken: Mapping[str, int] | None = None) -> Candidate | None:
    """The best of the accepted: best mode, then the least busy proxy, then its name. `taken`: by proxy id, what
    it was given besides; None when none is accepted.
    """
    more = taken or {}
    return min(
        (candidate for candidate in candidates if candidate.accepted),
        key=lambda one: preference(one, more.get(one.proxy_id, 0)),
        default=None,
    )


def better_modes(decision: Decision) -> list[ModeRefused]:
    """Why each mode that is better than the chosen one was not taken, best first; all modes when none was."""
    bound = RANKS[decision.chosen.mode] if decision.chosen else len(RANKS) + 1
    said = {one.mode: one.reason for one in decision.refused}
    for mode in {candidate.mode for candidate in decision.candidates if candidate.mode not in said}:
        said[mode] = _grouped(candidate for candidate in decision.candidates if candidate.mode is mode)
    return [
        ModeRefused(mode=mode, reason=said[mode])
        for mode in TransportMode
        if mode in said and RANKS[mode] < bound
    ]


def _full(limits: Sequence[Limit], mode: TransportMode | None) -> str:
    """Which limits leave no room in that mode; `mode` None: of a task that opens no disk of vSphere."""
    return "; ".join(limit.why for limit in limits if limit.is_full(mode))


def judge_pair(proxy: ProxyFacts, mode: TransportMode, seen: Survey, full: str) -> Candidate:
    obstacle = seen.reasons[proxy.id, mode]
    reason = obstacle or not_now(proxy) or full
    return Candidate(
        proxy_id=proxy.id,
        proxy_name=proxy.name,
        mode=mode,
        accepted=not reason,
        reason=reason,
        used=proxy.used,
        slots=proxy.slots,
        reaches=not obstacle,
        near=(proxy.id, mode) not in seen.far,
    )


def preference(candidate: Candidate, more: int = 0) -> tuple[int, float, str]:
    return (
        candidate.rank,
        (candidate.used + more) / max(1, candidate.slots),
        candidate.proxy_name,
    )


def _why_none(candidates: Sequence[Candidate]) -> str:
    if not candidates:
        return "there is no proxy; add one with: vmhaul proxy add"
    by_proxy: dict[str, Candidate] = {}
    for candidate in candidates:
        before = by_proxy.get(candidate.proxy_name)
        # What it only waits for says more than what it will never do; else the last mode, which is the
        # one that asks least.
        if before is None or not before.reaches:
            by_proxy[candidate.proxy_name] = candidate
    return _grouped(by_proxy.values())


def _grouped(candidates: Iterable[Candidate]) -> str:
    """Reasons with the names of those for whom they hold."""
    return grouped_by_reason(
        (candidate.proxy_name, candidate.reason or "not the one that claimed it")
        for candidate in candidates
    )
