"""What traffic rules that ask for encryption forbid: pairs of proxy and mode whose data would cross in the clear.

A pair that is forbidden is refused with the rule's name, and another mode or proxy is chosen where there is one. Where
an end of the traffic is still being looked up nothing that is in the clear goes to it; what cannot be found out is
covered by no rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.tables import TrafficRule
from backup_server.services.networks import on_one_machine
from backup_server.services.task_ends import IN_CLEAR, Ends, Point, ProxyEnd, Storages, TaskFacts
from backup_server.services.traffic_rules import Rule, enabled_rules
from backup_server.services.wishes import FILE_MODE, WITHOUT_VSPHERE
from transports.base import TransportMode

LOOKUP_WAIT_S = 1.0
"""For people, who ask once. The scheduler waits for nothing: it asks again when something was found out."""
Forbidden = tuple[tuple[str, str, str], ...]
"""Proxy id, mode and reason; sorted."""


@dataclass(slots=True)
class _Kept:
    """Answers that were found before; not a part of the value."""

    answers: dict[TaskFacts, Forbidden] = field(default_factory=dict)
    is_whole: bool = True
    """False: something is being looked up, so ask again with another guard."""
    answered: int = 0
    """Ends.answered before the first question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """The rules that ask for encryption, and what is needed to apply them. Two that say the same are equal."""

    rules: tuple[Rule, ...] = ()
    here: Mapping[str, ProxyEnd] = field(default_factory=dict)
    """By proxy id."""
    storages: Storages = field(default_factory=lambda: Storages(locations={}, systems={}))
    ends: Ends | None = field(default=None, compare=False)
    wait_s: float = field(default=0.0, compare=False)
    """How long it waits for one answer, as long as all come in time."""
    kept: _Kept = field(default_factory=_Kept, compare=False)

    def forbidden(self, row: Any) -> Forbidden:
        """For one task: a Task, or its columns."""
        if not self.rules:
            return ()
        facts = self.storages.facts_of(row)
        if facts not in self.kept.answers:
            self.kept.answers[facts] = tuple(sorted(self._forbidden(facts)))
        return self.kept.answers[facts]

    def stops(self, facts: TaskFacts, proxy_id: str, mode: TransportMode) -> str:
        """Why a task must not go on that runs there in that mode; empty: it may, or nobody knows yet where its data go."""
        here = self.here.get(proxy_id)
        if not self.rules or here is None:
            return ""
        points = [point for point in self._points(facts, mode, here) if point.is_known]
        return next(filter(None, (self._why(here, point) for point in points)), "")

    def _points(self, facts: TaskFacts, mode: TransportMode, here: ProxyEnd) -> Iterator[Point]:
        """Whatever the proxy that works on the task reads and writes."""
        assert self.ends is not None
        yield self.ends.repository(facts, wait_s=self.wait_s)
        if facts.copied_from or (mode in IN_CLEAR and facts.kind not in WITHOUT_VSPHERE):
            yield self.ends.disk(facts, mode, here, wait_s=self.wait_s)

    def _forbidden(self, facts: TaskFacts) -> Iterator[tuple[str, str, str]]:
        assert self.ends is not None
        # Where one answer does not come, no other is waited for.
        wait_s = self.wait_s if self.kept.is_whole else 0.0
        repository = self.ends.repository(facts, wait_s=wait_s)
        whole = [repository]
        if facts.copied_from:
            whole.append(self.ends.disk(facts, None, wait_s=wait_s))
        modes = [FILE_MODE] if facts.kind in WITHOUT_VSPHERE else list(TransportMode)
        disks = {
            mode: self.ends.disk(facts, mode, wait_s=wait_s)
            for mode in modes
            if mode in IN_CLEAR and facts.kind not in WITHOUT_VSPHERE
        }
        san = TransportMode.DIRECT_SAN
        for proxy_id, here in self.here.items():
            if san in disks:
                # Each proxy has its own way to the storage network.
                disks[san] = self.ends.disk(facts, san, here, wait_s=wait_s)
            for mode in modes:
                points = [*whole, disks[mode]] if mode in disks else whole
                why = next(filter(None, (self._why(here, point) for point in points)), "")
                if why:
                    yield proxy_id, mode.value, why

    def _why(self, here: ProxyEnd, point: Point) -> str:
        """Why a proxy there must not reach the point; empty: it may."""
        if not point.clear:
            return ""
        if not point.is_known:
            self.kept.is_whole = False
            return f"{point.clear}, and where that goes is being looked up for a traffic rule"
        if on_one_machine(here.addresses, point.addresses):
            return ""
        for rule in self.rules:
            if rule.covers(here.addresses, point.addresses):
                return f"traffic rule {rule.name} asks for encryption, and {point.clear}"
        return ""


NO_GUARD = Guard()


def read(
    s: DbSession,
    ends: Ends | None,
    here: Callable[[], Mapping[str, ProxyEnd]],
    before: Guard | None = None,
    *,
    wait_s: float = 0.0,
) -> Guard:
    """The guard as of now; `before` itself when that still holds, with what it found. `here` tells the proxies' ends by
    their ids. `wait_s`: how long it may wait for an answer of vCenter or of a name server.
    """
    if ends is None or not s.scalar(
        sa.select(sa.func.count())
        .select_from(TrafficRule)
        .where(TrafficRule.enabled.is_(True), TrafficRule.encrypt.is_(True))
    ):
        return NO_GUARD
    rules = tuple(rule for rule in enabled_rules(s) if rule.encrypt)
    guard = Guard(
        rules=rules,
        here=dict(here()),
        storages=Storages.read(s),
        ends=ends,
        wait_s=wait_s,
        kept=_Kept(answered=ends.answered),
    )
    if before is None or guard != before:
        return guard
    nothing_new = before.kept.is_whole or before.kept.answered == ends.answered
    return before if nothing_new else guard
