"""What the decisions of one round share: all pairs of proxy and mode for a wish, judged once.

A round of the dispatcher confirms many claims; each pair of a large fleet judged for each of them would be most of what
the server does. Pure, as `placement`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from backup_server.services.placement import (
    NAMED_CANDIDATES,
    Candidate,
    Decision,
    ProxyFacts,
    Survey,
    judge_pair,
    modes_in_question,
    not_offered,
    preference,
    remarks_of,
    said_of,
    survey,
    why_chosen,
)
from backup_server.services.wishes import ModeRefused, Wish


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
    best: Mapping[str, Candidate]
    """Proxy id -> its best pair; only of proxies that may take a task now."""
    refused: tuple[ModeRefused, ...]


def lineup(wish: Wish, proxies: Sequence[ProxyFacts], known: Survey | None = None) -> Lineup:
    seen = known or survey(wish, proxies)
    modes = modes_in_question(wish, proxies)
    judged = [judge_pair(proxy, mode, seen, "") for proxy in proxies for mode in modes]
    judged.sort(key=lambda c: (not c.accepted, preference(c)))
    best: dict[str, Candidate] = {}
    for candidate in judged:
        if candidate.accepted:
            best.setdefault(candidate.proxy_id, candidate)
    return Lineup(
        wish=wish,
        seen=seen,
        named=tuple(judged[:NAMED_CANDIDATES]),
        counted=Counter(said_of(candidate) for candidate in judged),
        best=best,
        refused=tuple(not_offered(wish, modes)),
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
    chosen = replace(found, used=taken)
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
