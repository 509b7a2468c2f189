"""What the dispatcher knows between two rounds: the fleet, the wishes of what waits, and the limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Final

from backup_server.db.tables import Task
from backup_server.scheduler import facts
from backup_server.scheduler.claims import CLOSED, ProxyEntry
from backup_server.scheduler.needs import SchedulerContext
from backup_server.services import datastore_loads, limits, proxy_facts, traffic_guard
from backup_server.services.limits import DATASTORE, HOST, REPOSITORY
from backup_server.services.placement import Limit
from backup_server.services.surveys import ProxyFacts, Survey, Surveyor
from backup_server.services.task_ends import Ends
from backup_server.services.wishes import Wish
from transports.base import TransportMode
from transports.rules import NETWORK_MODES

_LONGEST_LAG_S: Final = 120.0


@dataclass(slots=True)
class View:
    """Filled by `read`; one thread uses it."""

    ends: Ends | None = None
    """Finds out between which machines data move; None: no rule asks for encryption."""
    machines: proxy_facts.Machines = field(default_factory=proxy_facts.Machines)
    proxies: list[ProxyFacts] = field(default_factory=list)
    """Without what they have in use: that is the index's to say."""
    by_id: dict[str, ProxyFacts] = field(default_factory=dict)
    fleet: proxy_facts.Fleet = field(default_factory=proxy_facts.Fleet)
    fleets: int = 0
    """Raised when what wishes need to know of the fleet changed: then what waits has other wishes."""
    repositories: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Row id -> name and most tasks."""
    repository_rows: dict[str, str] = field(default_factory=dict)
    """Id inside the repository -> row id."""
    loads: datastore_loads.Loads | None = None
    host_tasks: int = 0
    """Most tasks through the NFC service of a host."""
    named: set[str] = field(default_factory=set)
    """Limit keys of datastores and hosts that tasks have."""
    wishes: dict[str, Wish] = field(default_factory=dict)
    surveyor: Surveyor = field(default_factory=Surveyor)
    surveys: dict[str, Survey] = field(default_factory=dict)
    """Wish -> what every proxy reaches of it; until it is surveyed anew, of the fleet as it was a moment ago."""
    unsurveyed: dict[str, None] = field(default_factory=dict)
    """Wishes that are new, or that were surveyed before the fleet changed; in their order."""
    unwritten: dict[str, None] = field(default_factory=dict)
    """Wishes that were surveyed, whoever asked, and of which the index was not told yet."""
    forgotten: list[str] = field(default_factory=list)
    """Wishes that nothing has any more, until the index was told so."""

    def read(self, ctx: SchedulerContext, now: datetime, heard_until: datetime | None = None) -> None:
        """`heard_until`: what proxies said since is not applied yet, so that silence is measured by then."""
        settings = ctx.settings
        # Not for ever: who reads nothing at all does not know who is there.
        longest = timedelta(seconds=_LONGEST_LAG_S)
        heard_at = now if heard_until is None else max(min(now, heard_until), now - longest)
        # A proxy whose lease just ran out must not be the one that gets the task again.
        silent_s = min(settings.proxy_offline_after_s, settings.lease_s)
        with ctx.db.read() as s:
            self.repositories = facts.repository_limits(s)
            self.repository_rows = limits.repository_rows(s)
            self.loads = datastore_loads.read(s, settings, now)
            proxies = proxy_facts.proxy_facts(s, heard_at, silent_s, {}, self.machines)
            guard = traffic_guard.read(s, self.ends, self.machines.ends, self.fleet.guard)
            directories = proxy_facts.directories_for(s, proxies)
        self.host_tasks = settings.host_nfc_tasks
        if (
            proxies != self.proxies
            or guard is not self.fleet.guard
            or directories != self.fleet.directories
        ):
            before, self.proxies = self.proxies, proxies
            self.by_id = {proxy.id: proxy for proxy in proxies}
            fleet = proxy_facts.fleet_of(proxies, guard, directories)
            # Another guard that says the same found something out meanwhile.
            self.fleets += fleet != self.fleet or guard is not self.fleet.guard
            self.fleet = fleet
            self.surveyor.follow(proxies)
            if [one.id for one in proxies] != [one.id for one in before]:
                self.surveys.clear()  # they say nothing of those that came
                self.unwritten.clear()
            # Who waited before comes first: a fleet may change faster than all of them are surveyed.
            self.unsurveyed.update(dict.fromkeys(self.wishes))

    def add_wish(self, wish: Wish) -> str:
        """Its key."""
        key = wish.key
        if key not in self.wishes:
            self.wishes[key] = wish
            self.unsurveyed[key] = None
        return key

    def survey(self, most: int | None = None) -> list[str]:
        """Bring surveys up to date, no more than `most` of them; answers those of which the index is to be told."""
        for key in list(islice(self.unsurveyed, most)):
            self.survey_of(key)
        return list(self.unwritten)

    def survey_of(self, key: str) -> Survey:
        """Of a wish that is known, by the fleet as it is."""
        if key in self.unsurveyed or key not in self.surveys:
            self.surveys[key] = self.surveyor.survey(self.wishes[key])
            self.unsurveyed.pop(key, None)
            self.unwritten[key] = None
        return self.surveys[key]

    def forget_wishes(self, keys: Iterable[str]) -> None:
        for key in list(keys):
            self.wishes.pop(key, None)
            self.unsurveyed.pop(key, None)
            self.unwritten.pop(key, None)
            self.surveys.pop(key, None)
            # Also one that was not surveyed since the fleet became another: the index knows it from before.
            self.forgotten.append(key)
        self.surveyor.forget_but(self.wishes.values())

    # -- for the index

    def keys(self, row: Task) -> tuple[str, ...]:
        keys = limits.task_keys(row, self.repository_rows)
        self.named.update(key for key in keys if key.startswith((DATASTORE, HOST)))
        return keys

    def limits(self) -> dict[str, int]:
        """Limit key -> most, of all keys that tasks have."""
        found = {REPOSITORY + row_id: most for row_id, (_, most) in self.repositories.items()}
        closed = self.loads.closed if self.loads else {}
        for key in self.named:
            found[key] = CLOSED if key in closed else self._most(key)
        return found

    def _most(self, key: str) -> int:
        if key.startswith(REPOSITORY):
            return self.repositories.get(key.removeprefix(REPOSITORY), ("", 0))[1]
        if key.startswith(HOST):
            return self.host_tasks
        return self.loads.max_tasks(key.removeprefix(DATASTORE)) if self.loads else 0

    def entries(self) -> list[ProxyEntry]:
        return [
            ProxyEntry(
                proxy_id=proxy.id,
                on=is_on(proxy),
                slots=proxy.slots,
                attachable=_attachable(proxy),
            )
            for proxy in self.proxies
        ]

    # -- for people

    def with_used(self, used: Mapping[str, int]) -> list[ProxyFacts]:
        """`used`: as ClaimIndex.usage()."""
        return [replace(proxy, used=used.get(f"p:{proxy.id}", 0)) for proxy in self.proxies]

    def limits_of(self, row: Task, usage: Mapping[str, int]) -> list[Limit]:
        closed = self.loads.closed if self.loads else {}
        names = {key: name for key, (name, _) in self.repositories.items()}
        return [
            Limit(
                key=key,
                what=limits.limit_name(key, names),
                used=usage.get(key, 0),
                maximum=0 if key in closed else self._most(key),
                modes=NETWORK_MODES if key.startswith(HOST) else None,
                closed=closed.get(key, ""),
            )
            for key in limits.task_keys(row, self.repository_rows)
        ]


def is_on(proxy: ProxyFacts) -> bool:
    """Whether it takes tasks."""
    return (
        proxy.enabled and proxy.enrolled and proxy.online and not proxy.stopping and not proxy.trouble
    )


def _attachable(proxy: ProxyFacts) -> int:
    """Disks that may be attached to the proxy's VM at once: it is one VM, or the rules refuse it."""
    if TransportMode.HOTADD not in proxy.offered_modes or proxy.machine is None:
        return 0
    return max((vm.free_slots for vm in proxy.machine.vms), default=0)
