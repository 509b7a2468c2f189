"""Which proxy may take a disk task, and in which transport mode. Pure: values in, values out.

A candidate is a pair of proxy and mode. Each is accepted or refused with a reason; among the accepted
the best mode wins, then the least busy proxy. The decision with all candidates is stored with the task,
so that "why there" and "why not yet" can be answered later.

First the **survey**: what every proxy reaches, whatever is busy now. It asks the rules of `transports.rules`
and what the job and the administrator allow, and holds for all tasks with the same wish. Then the
**decision**: what of it is free at this moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from backup_server.services.wishes import FILE_MODE, ModeRefused, Wish
from transports.base import TransportMode
from transports.rules import NETWORK_MODES, ProxyMachine, judge_proxy

RANKS: Final = {mode: rank for rank, mode in enumerate(TransportMode, start=1)}
"""1 is the best."""


def claim_rank(mode: TransportMode, *, near: bool) -> int:
    """What the claim index orders by: the mode first, then whether the proxy is near what it is to read."""
    return 2 * RANKS[mode] - near


NETWORK_RANK: Final = min(claim_rank(mode, near=True) for mode in NETWORK_MODES)
"""From this rank of a claim on a mode uses the NFC service of the VM's host."""
HOTADD_RANKS: Final = (
    claim_rank(TransportMode.HOTADD, near=True),
    claim_rank(TransportMode.HOTADD, near=False),
)
"""First and last rank of claims that attach a disk to the proxy's VM."""

NAMED_PROXIES: Final = 5
NAMED_CANDIDATES: Final = 12
"""How many candidates a stored decision names: 30,000 of them are written in a night."""


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
    failover_to_network: bool = True
    """Its network modes may take over for its others."""
    repositories: frozenset[str] = frozenset()
    """Row ids of the repositories that it is set to be near to."""
    machine: ProxyMachine | None = None
    """None: it has not looked around yet."""
    missing: Mapping[TransportMode, str] = field(default_factory=dict)
    """What its machine lacks for modes that it does not offer."""
    trouble: str = ""
    """What is wrong with it as a whole, so that it gets nothing new; empty: nothing."""


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
    return candidate.reason or "accepted"


def refused_json(refused: Sequence[ModeRefused]) -> list[dict[str, str]]:
    return [{"mode": one.mode.value, "reason": one.reason} for one in refused]


# ---- what every proxy reaches ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What speaks against each pair of proxy and mode, whatever is busy."""

    reasons: Mapping[tuple[str, TransportMode], str]
    """By proxy id and mode; empty: nothing does."""
    best: Mapping[str, TransportMode]
    """Proxy id -> best mode in which it takes tasks of this wish. Proxies that take none are left out."""
    fallbacks: Mapping[str, tuple[TransportMode, ...]]
    """Proxy id -> modes in which it can open the disk at all, best first."""
    far: frozenset[tuple[str, TransportMode]] = frozenset()
    """Pairs in which another proxy would be nearer to what is read."""
    warning: str = ""
    """Why the proxies near the repository are not what decides, where there are such; else empty."""

    def rank(self, proxy_id: str) -> int:
        """As `claim_rank`, of the best mode of a proxy that takes tasks of this wish."""
        mode = self.best[proxy_id]
        return claim_rank(mode, near=(proxy_id, mode) not in self.far)

    def after(self, proxy_id: str, mode: TransportMode) -> tuple[TransportMode, ...]:
        """Where that proxy may go on when `mode` fails."""
        modes = self.fallbacks.get(proxy_id, ())
        return tuple(other for other in modes if RANKS[other] > RANKS[mode])


def survey(wish: Wish, proxies: Sequence[ProxyFacts]) -> Survey:
    """All proxies and modes of the wish."""
    if wish.impossible:
        return Survey(reasons={}, best={}, fallbacks={})
    modes = wish.modes or (FILE_MODE,)
    reasons = {(proxy.id, mode): _obstacle(proxy, wish, mode) for proxy in proxies for mode in modes}
    for proxy_id, mode, why in wish.forbidden:
        if not reasons.get((proxy_id, TransportMode(mode)), "unknown"):
            reasons[proxy_id, TransportMode(mode)] = why
    if wish.modes:
        _network_as_asked(wish, proxies, reasons)
    for proxy_id, mode, why in wish.left:
        known = TransportMode(mode)
        if not reasons.get((proxy_id, known), "unknown"):
            reasons[proxy_id, known] = f"{mode} failed there: {why}" if why else f"{mode} failed there"
    warning = _near_repository(wish, proxies, modes, reasons)
    fallbacks = {
        proxy.id: tuple(mode for mode in wish.modes if not reasons[proxy.id, mode]) for proxy in proxies
    }
    if TransportMode.DIRECT_NFS in wish.modes:
        _nearest_nfs(wish, proxies, reasons)
    best = {
        proxy.id: next(mode for mode in modes if not reasons[proxy.id, mode])
        for proxy in proxies
        if not all(reasons[proxy.id, mode] for mode in modes)
    }
    far = frozenset(
        (proxy.id, mode) for proxy in proxies for mode in wish.modes if _is_far(proxy, wish, mode)
    )
    return Survey(reasons=reasons, best=best, fallbacks=fallbacks, far=far, warning=warning)


_Reasons = dict[tuple[str, TransportMode], str]


def _obstacle(proxy: ProxyFacts, wish: Wish, mode: TransportMode) -> str:
    if wish.proxies and proxy.id not in wish.proxies:
        return "other proxies are named for it"
    if not proxy.enabled:
        return "the proxy is disabled"
    if not proxy.enrolled:
        return "the proxy has not enrolled yet"
    if not wish.modes:
        return ""
    if mode not in proxy.offered_modes:
        lacks = proxy.missing.get(mode)
        return f"the proxy does not offer {mode.value}" + (f": {lacks}" if lacks else "")
    if proxy.allowed_modes and mode not in proxy.allowed_modes:
        return f"{mode.value} is switched off for this proxy"
    if wish.reach is None:
        return ""
    return judge_proxy(mode, wish.reach, proxy.machine or ProxyMachine(id=proxy.id)).text


def _network_as_asked(wish: Wish, proxies: Sequence[ProxyFacts], reasons: _Reasons) -> None:
    """Where network modes may not take over, they are for disks that no other mode can open at all."""
    direct = [mode for mode in wish.modes if mode not in NETWORK_MODES]
    able = {
        proxy.id: next((mode for mode in direct if not reasons[proxy.id, mode]), None)
        for proxy in proxies
    }
    first = next((proxy for proxy in proxies if able[proxy.id] is not None), None)
    for proxy in proxies:
        why = ""
        own = able[proxy.id]
        if first is not None and not wish.failover:
            by = able[first.id]
            assert by is not None
            why = f"the job lets no network mode take over, and {first.name} reaches the disk by {by.value}"
        elif own is not None and not proxy.failover_to_network:
            why = f"the proxy lets no network mode take over, and reaches the disk by {own.value}"
        for mode in NETWORK_MODES.intersection(wish.modes):
            reasons[proxy.id, mode] = reasons[proxy.id, mode] or why


def _near_repository(
    wish: Wish, proxies: Sequence[ProxyFacts], modes: Sequence[TransportMode], reasons: _Reasons
) -> str:
    """Proxies that are set to be near the repository come before others, in whatever mode, and are waited for
    while one of them is there. Answers why that is not followed; empty: it is.
    """
    if not wish.near:
        return ""
    listed = [proxy for proxy in proxies if proxy.id in wish.near]
    able = [
        proxy
        for proxy in listed
        if _is_there(proxy) and not all(reasons[proxy.id, mode] for mode in modes)
    ]
    if able:
        names = _list([proxy.name for proxy in able])
        for proxy in proxies:
            if proxy.id not in wish.near:
                for mode in modes:
                    reasons[proxy.id, mode] = reasons[proxy.id, mode] or (
                        f"proxies that are set to be near the repository come first: {names}"
                    )
        return ""
    if wish.proxies and not set(wish.proxies) & set(wish.near):
        return (
            f"the job names only proxies that are not near its repository; "
            f"near it: {_list([proxy.name for proxy in listed])}"
        )
    return "no proxy near the repository can take the disk, so any other may: " + _grouped_by_reason(
        (proxy.name, _why_not_there(proxy, modes, reasons)) for proxy in listed
    )


def _is_there(proxy: ProxyFacts) -> bool:
    return proxy.online and not proxy.stopping and not proxy.trouble and proxy.slots > 0


def _why_not_there(proxy: ProxyFacts, modes: Sequence[TransportMode], reasons: _Reasons) -> str:
    """The mode that asks least tells most: it is the last."""
    return reasons[proxy.id, modes[-1]] or _not_now(proxy)


def _is_far(proxy: ProxyFacts, wish: Wish, mode: TransportMode) -> bool:
    """Whether another place than this proxy would be nearer to what the mode reads, as far as that is known."""
    reach, machine = wish.reach, proxy.machine
    if reach is None:
        return False
    if mode in NETWORK_MODES and reach.networks:
        return machine is None or not set(machine.networks) & set(reach.networks)
    if mode is TransportMode.HOTADD and reach.data_hosts:
        here = () if machine is None else machine.vms
        return not any(
            vm.vcenter_id == reach.vcenter_id and vm.host_moref in reach.data_hosts for vm in here
        )
    return False


def _nearest_nfs(wish: Wish, proxies: Sequence[ProxyFacts], reasons: _Reasons) -> None:
    """Direct NFS is for the proxies with the fewest hops to the server, unless the job names proxies; and
    while one is there a task waits for it, and takes no worse mode.
    """
    mode = TransportMode.DIRECT_NFS
    able = [proxy for proxy in proxies if _is_there(proxy) and not reasons[proxy.id, mode]]
    if not able:
        return
    hops = {proxy.id: _hops(proxy, wish) for proxy in able}
    nearest = min(able, key=lambda proxy: (hops[proxy.id], proxy.name))
    if not wish.proxies:
        for proxy in able:
            if hops[proxy.id] > hops[nearest.id]:
                reasons[proxy.id, mode] = (
                    f"{nearest.name} is nearer to the NFS server: {_routers(hops[nearest.id])} on the way, "
                    f"{_routers(hops[proxy.id])} from here"
                )
    names = [proxy.name for proxy in able if not reasons[proxy.id, mode]]
    for proxy in proxies:
        for worse in wish.modes:
            if RANKS[worse] > RANKS[mode] and not reasons[proxy.id, worse]:
                reasons[proxy.id, worse] = (
                    f"the disk waits for {mode.value}, by which {_list(names)} can read it"
                )


_FAR: Final = 1 << 16


def _hops(proxy: ProxyFacts, wish: Wish) -> int:
    """Routers on the way to the NFS server; very many where they are not known."""
    if proxy.machine is None or wish.reach is None:
        return _FAR
    found = proxy.machine.connected(wish.reach.key, TransportMode.DIRECT_NFS)
    return _FAR if found is None or found.hops < 0 else found.hops


def _routers(hops: int) -> str:
    if hops >= _FAR:
        return "an unknown number of routers"
    return f"{hops} router" + ("" if hops == 1 else "s")


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


def _not_now(proxy: ProxyFacts) -> str:
    if not proxy.online:
        return "the proxy is offline"
    if proxy.stopping:
        return "the proxy is stopping"
    if proxy.trouble:
        return proxy.trouble
    if proxy.slots <= 0:
        return "the proxy has no task slots"
    if proxy.used >= proxy.slots:
        return f"all {proxy.slots} task slots are taken"
    return ""


def judge_pair(proxy: ProxyFacts, mode: TransportMode, seen: Survey, full: str) -> Candidate:
    obstacle = seen.reasons[proxy.id, mode]
    reason = obstacle or _not_now(proxy) or full
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
    return _grouped_by_reason(
        (candidate.proxy_name, candidate.reason or "not the one that claimed it")
        for candidate in candidates
    )


def _grouped_by_reason(said: Iterable[tuple[str, str]]) -> str:
    """`said`: pairs of a proxy's name and the reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in said:
        by_reason.setdefault(reason, []).append(name)
    return "; ".join(f"{_list(names)}: {reason}" for reason, names in by_reason.items())


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMED_PROXIES])
    more = len(names) - NAMED_PROXIES
    return f"{shown} and {more} more" if more > 0 else shown
