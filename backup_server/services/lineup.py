"""What the decisions of one round share: all pairs of proxy and mode for a wish, judged once.

A round of the dispatcher confirms many claims; each pair of a large fleet judged for each of them would be most of what
the server does. Pure, as `placement`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import nsmallest
from operator import itemgetter

from backup_server.services.placement import (
    ACCEPTED,
    NAMED_CANDIDATES,
    Candidate,
    Decision,
    modes_in_question,
    not_offered,
    remarks_of,
    said_of,
    why_chosen,
)
from backup_server.services.surveys import RANKS, ProxyFacts, Survey, claim_rank, not_now, survey
from backup_server.services.wishes import ModeRefused, Wish
from transports.base import TransportMode


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineup:
    """What decisions about tasks of one wish share at one moment: all pairs judged, best first, without limits of
    single tasks.
    """

    wish: Wish
    seen: Survey
    named: tuple[Candidate, ...]
    """The best of them."""
    counted: Mapping[str, int]
    """All of them by reason."""
    best: Mapping[str, _Pair]
    """Proxy id -> its best pair; only of proxies that may take a task now."""
    refused: tuple[ModeRefused, ...]


def lineup(wish: Wish, proxies: Sequence[ProxyFacts], known: Survey | None = None) -> Lineup:
    seen = known or survey(wish, proxies)
    modes = modes_in_question(wish, proxies)
    now = [(proxy, not_now(proxy), proxy.used / max(1, proxy.slots)) for proxy in proxies]
    pairs: list[_Pair] = []
    best: dict[str, _Pair] = {}
    # The better modes first, so that the first pair of a proxy that may take a task is its best.
    for mode in sorted(modes, key=RANKS.__getitem__):
        near, far = claim_rank(mode, near=True), claim_rank(mode, near=False)
        of_mode = seen.reasons.of_mode(mode, proxies)
        for (proxy, busy, load), obstacle in zip(now, of_mode, strict=True):
            reason = obstacle or busy
            rank = far if seen.far and (proxy.id, mode) in seen.far else near
            pair = (reason != "", rank, load, proxy.name, reason, mode, proxy)
            pairs.append(pair)
            if not reason and proxy.id not in best:
                best[proxy.id] = pair
    named = nsmallest(NAMED_CANDIDATES, pairs, key=itemgetter(0, 1, 2, 3))
    return Lineup(
        wish=wish,
        seen=seen,
        named=tuple(_candidate(pair, seen) for pair in named),
        counted=Counter(pair[4] or ACCEPTED for pair in pairs),
        best=best,
        refused=tuple(not_offered(wish, modes)),
    )


_Pair = tuple[bool, int, float, str, str, TransportMode, ProxyFacts]
"""Refused, rank, load, name, reason, mode, proxy: in the order of preference."""


def _candidate(pair: _Pair, seen: Survey) -> Candidate:
    refused, _, _, name, reason, mode, proxy = pair
    return Candidate(
        proxy_id=proxy.id,
        proxy_name=name,
        mode=mode,
        accepted=not refused,
        reason=reason,
        used=proxy.used,
        slots=proxy.slots,
        reaches=not seen.reasons[proxy.id, mode],
        near=(proxy.id, mode) not in seen.far,
    )


def confirm(
    lined_up: Lineup,
    claimed_by: ProxyFacts,
    *,
    taken: int,
    refused: Sequence[ModeRefused] = (),
) -> Decision | None:
    """The decision for a task that the claim index gave to a proxy; None: the proxy may not take it. Limits are
    not looked at again: the claim was counted in them. `taken`: slots of that proxy that are in use.
    """
    found = lined_up.best.get(claimed_by.id)
    if found is None:
        return None
    chosen = replace(_candidate(found, lined_up.seen), used=taken)
    others = [c for c in lined_up.named if (c.proxy_id, c.mode) != (chosen.proxy_id, chosen.mode)]
    listed = (chosen, *others[: NAMED_CANDIDATES - 1])
    return Decision(
        chosen=chosen,
        reason=why_chosen(chosen, lined_up.wish),
        candidates=listed,
        others=Counter(lined_up.counted) - Counter(said_of(candidate) for candidate in listed),
        fallbacks=lined_up.seen.after(chosen.proxy_id, chosen.mode) if lined_up.wish.modes else (),
        refused=(*refused, *lined_up.refused),
        remarks=remarks_of(chosen, lined_up.wish, (claimed_by,)),
        warning=lined_up.seen.warning,
    )
