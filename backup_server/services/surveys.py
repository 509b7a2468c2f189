"""What every proxy reaches, whatever is busy now: the survey of a wish. Pure: values in, values out.

It asks the rules of `transports.rules` and what the job and the administrator allow, and holds for all tasks with the
same wish. A large site has a thousand wishes, two hundred proxies and five modes. So what the rules say of a mode is kept
as **columns**, one reason for each proxy, shared by all wishes for which the same holds; and when one proxy changes, its
line alone is asked anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from backup_server.services.wishes import FILE_MODE, Wish
from transports.base import TransportMode
from transports.rules import NETWORK_MODES, ProxyMachine, Reach, judge_proxy, what_matters

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

_NEAR_RANKS: Final = {mode: claim_rank(mode, near=True) for mode in RANKS}
NAMED_PROXIES: Final = 5
Column = tuple[str, ...]
"""What speaks against a mode, for each proxy in the fleet's order; empty: nothing."""


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
    no_directories: str = ""
    """Why it opens no repository in a directory and makes no image file; empty: it does both."""


class Obstacles(Mapping[tuple[str, TransportMode], str]):
    """What speaks against each pair of proxy id and mode; empty: nothing does."""

    __slots__ = ("_columns", "_places")

    def __init__(self, places: Mapping[str, int], columns: Mapping[TransportMode, Column]) -> None:
        """`places`: proxy id -> its place in the columns."""
        self._places = places
        self._columns = columns

    def __getitem__(self, pair: tuple[str, TransportMode]) -> str:
        proxy_id, mode = pair
        return self._columns[mode][self._places[proxy_id]]

    def __iter__(self) -> Iterator[tuple[str, TransportMode]]:
        return ((proxy_id, mode) for proxy_id in self._places for mode in self._columns)

    def __len__(self) -> int:
        return len(self._places) * len(self._columns)

    def of_mode(self, mode: TransportMode, proxies: Iterable[ProxyFacts]) -> Iterator[str]:
        """As so many look-ups, in the order of the proxies."""
        column, places = self._columns[mode], self._places
        return (column[places[proxy.id]] for proxy in proxies)

    def modes(self) -> Iterable[TransportMode]:
        return self._columns.keys()


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What speaks against each pair of proxy and mode, whatever is busy."""

    reasons: Obstacles
    best: Mapping[str, TransportMode]
    """Proxy id -> best mode in which it takes tasks of this wish. Proxies that take none are left out."""
    open: Obstacles
    """As `reasons`, before a nearer proxy's claim to the disk: modes in which it can be opened at all."""
    far: frozenset[tuple[str, TransportMode]] = frozenset()
    """Pairs in which another proxy would be nearer to what is read."""
    warning: str = ""
    """Why the proxies near the repository are not what decides, where there are such; else empty."""

    def rank(self, proxy_id: str) -> int:
        """As `claim_rank`, of the best mode of a proxy that takes tasks of this wish."""
        mode = self.best[proxy_id]
        return claim_rank(mode, near=(proxy_id, mode) not in self.far)

    def ranks(self) -> dict[str, int]:
        """Of every proxy that takes tasks of this wish, by its id."""
        if self.far:
            return {proxy_id: self.rank(proxy_id) for proxy_id in self.best}
        return {proxy_id: _NEAR_RANKS[mode] for proxy_id, mode in self.best.items()}

    def after(self, proxy_id: str, mode: TransportMode) -> tuple[TransportMode, ...]:
        """Where that proxy may go on when `mode` fails, best first."""
        return tuple(
            other
            for other in self.open.modes()
            if RANKS[other] > RANKS[mode] and not self.open[proxy_id, other]
        )


class Surveyor:
    """Surveys wishes over one fleet. One thread uses it."""

    def __init__(self, proxies: Sequence[ProxyFacts] = ()) -> None:
        self._proxies: tuple[ProxyFacts, ...] = ()
        self._places: dict[str, int] = {}
        self._columns: dict[_ColumnKey, Column] = {}
        self.follow(proxies)

    def follow(self, proxies: Sequence[ProxyFacts]) -> None:
        """The fleet as it is now; what is known of proxies that did not change is kept."""
        before, now = self._proxies, tuple(proxies)
        self._proxies = now
        if [one.id for one in before] != [one.id for one in now]:
            self._places = {proxy.id: place for place, proxy in enumerate(now)}
            self._columns.clear()
            return
        changed = [place for place, one in enumerate(now) if _lasting(one) != _lasting(before[place])]
        if not changed:
            return
        for key, column in self._columns.items():
            line = list(column)
            for place in changed:
                line[place] = _obstacle(now[place], *key)
            self._columns[key] = tuple(line)

    def forget_but(self, wishes: Iterable[Wish]) -> None:
        """Drop what was asked for other wishes only."""
        wanted = {_column_key(wish, mode) for wish in wishes for mode in wish.modes or (FILE_MODE,)}
        for key in self._columns.keys() - wanted:
            del self._columns[key]

    def _column(self, wish: Wish, mode: TransportMode) -> Column:
        key = _column_key(wish, mode)
        found = self._columns.get(key)
        if found is None:
            found = self._columns[key] = tuple(_obstacle(proxy, *key) for proxy in self._proxies)
        return found

    def survey(self, wish: Wish) -> Survey:
        """All proxies of the fleet and all modes of the wish."""
        modes = () if wish.impossible else wish.modes or (FILE_MODE,)
        table = _Table(
            wish=wish,
            modes=modes,
            proxies=self._proxies,
            places=self._places,
            columns={mode: self._column(wish, mode) for mode in modes},
        )
        if modes:
            table.follow_the_wish()
        warning = table.near_repository() if wish.near and modes else ""
        open_ = dict(table.columns)
        if TransportMode.DIRECT_NFS in modes:
            table.nearest_nfs()
        return Survey(
            reasons=Obstacles(self._places, table.columns),
            best=table.best(),
            open=Obstacles(self._places, open_ if wish.modes else {}),
            far=table.far(),
            warning=warning,
        )


def survey(wish: Wish, proxies: Sequence[ProxyFacts]) -> Survey:
    """Of one wish. Who has many uses a Surveyor."""
    return Surveyor(proxies).survey(wish)


# ---- columns --------------------------------------------------------------------------------------

_ColumnKey = tuple[TransportMode | None, Reach | None]
"""Mode (None: no disk of vSphere is opened), and what of the disk the rules of that mode look at."""


def _column_key(wish: Wish, mode: TransportMode) -> _ColumnKey:
    if not wish.modes:
        return None, None
    return mode, None if wish.reach is None else what_matters(mode, wish.reach)


def _lasting(proxy: ProxyFacts) -> tuple[object, ...]:
    """What `_obstacle` looks at."""
    return (
        proxy.enabled,
        proxy.enrolled,
        proxy.offered_modes,
        proxy.allowed_modes,
        proxy.missing,
        proxy.machine,
    )


def _obstacle(proxy: ProxyFacts, mode: TransportMode | None, reach: Reach | None) -> str:
    if not proxy.enabled:
        return "the proxy is disabled"
    if not proxy.enrolled:
        return "the proxy has not enrolled yet"
    if mode is None:
        return ""
    if mode not in proxy.offered_modes:
        lacks = proxy.missing.get(mode)
        return f"the proxy does not offer {mode.value}" + (f": {lacks}" if lacks else "")
    if proxy.allowed_modes and mode not in proxy.allowed_modes:
        return f"{mode.value} is switched off for this proxy"
    if reach is None:
        return ""
    return judge_proxy(mode, reach, proxy.machine or ProxyMachine(id=proxy.id)).text


# ---- one wish -------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Table:
    """The columns of one wish, as they are worked out. A column is replaced, never changed: wishes share them."""

    wish: Wish
    modes: Sequence[TransportMode]
    proxies: Sequence[ProxyFacts]
    places: Mapping[str, int]
    columns: dict[TransportMode, Column]

    def follow_the_wish(self) -> None:
        """What the job names and lets take over, what rules of traffic forbid, and what was tried before."""
        wish = self.wish
        if wish.proxies:
            named = set(wish.proxies)
            for mode in self.modes:
                self.columns[mode] = tuple(
                    reason if proxy.id in named else "other proxies are named for it"
                    for proxy, reason in zip(self.proxies, self.columns[mode], strict=True)
                )
        if wish.directory:
            # Not in the columns: those hold whatever the repository is.
            for mode in self.modes:
                self._add(mode, self._no_directories)
        self._refuse_pairs((pair[0], pair[1], pair[2]) for pair in wish.forbidden)
        if wish.modes:
            self._network_as_asked()
        self._refuse_pairs(
            (proxy_id, mode, f"{mode} failed there: {why}" if why else f"{mode} failed there")
            for proxy_id, mode, why in wish.left
        )

    def _refuse_pairs(self, pairs: Iterable[tuple[str, str, str]]) -> None:
        """Where nothing else spoke against them."""
        for proxy_id, name, why in pairs:
            mode, place = TransportMode(name), self.places.get(proxy_id)
            if place is not None and mode in self.columns and not self.columns[mode][place]:
                line = list(self.columns[mode])
                line[place] = why
                self.columns[mode] = tuple(line)

    def _add(self, mode: TransportMode, why: Callable[[int], str]) -> None:
        """`why` for each place where nothing spoke against the mode before."""
        self.columns[mode] = tuple(
            reason or why(place) for place, reason in enumerate(self.columns[mode])
        )

    def _no_directories(self, place: int) -> str:
        why = self.proxies[place].no_directories
        return f"the proxy opens no directories: {why}" if why else ""

    def _network_as_asked(self) -> None:
        """Where network modes may not take over, they are for disks that no other mode can open at all."""
        network = [mode for mode in self.modes if mode in NETWORK_MODES]
        if not network or (
            self.wish.failover and all(proxy.failover_to_network for proxy in self.proxies)
        ):
            return
        direct = [mode for mode in self.modes if mode not in NETWORK_MODES]
        able = [
            next((mode for mode in direct if not self.columns[mode][place]), None)
            for place in range(len(self.proxies))
        ]
        first = next((place for place, mode in enumerate(able) if mode is not None), None)

        def why(place: int) -> str:
            own = able[place]
            if first is not None and not self.wish.failover:
                by = able[first]
                assert by is not None
                return (
                    "the job lets no network mode take over, and "
                    f"{self.proxies[first].name} reaches the disk by {by.value}"
                )
            if own is not None and not self.proxies[place].failover_to_network:
                return f"the proxy lets no network mode take over, and reaches the disk by {own.value}"
            return ""

        for mode in network:
            self._add(mode, why)

    def near_repository(self) -> str:
        """Proxies that are set to be near the repository come before others, in whatever mode, and are waited for
        while one of them is there. Answers why that is not followed; empty: it is.
        """
        near = set(self.wish.near)
        listed = [place for place, proxy in enumerate(self.proxies) if proxy.id in near]
        able = [
            place
            for place in listed
            if _is_there(self.proxies[place]) and not all(self._reasons(place))
        ]
        if able:
            names = list_names([self.proxies[place].name for place in able])
            text = f"proxies that are set to be near the repository come first: {names}"
            for mode in self.modes:
                self._add(mode, lambda place: "" if self.proxies[place].id in near else text)
            return ""
        names = list_names([self.proxies[place].name for place in listed])
        if self.wish.proxies and not set(self.wish.proxies) & near:
            return f"the job names only proxies that are not near its repository; near it: {names}"
        return "no proxy near the repository can take the disk, so any other may: " + grouped_by_reason(
            (self.proxies[place].name, self._why_not_there(place)) for place in listed
        )

    def _reasons(self, place: int) -> list[str]:
        return [self.columns[mode][place] for mode in self.modes]

    def _why_not_there(self, place: int) -> str:
        """The mode that asks least tells most: it is the last."""
        return self._reasons(place)[-1] or not_now(self.proxies[place])

    def nearest_nfs(self) -> None:
        """Direct NFS is for the proxies with the fewest hops to the server, unless the job names proxies; and
        while one is there a task waits for it, and takes no worse mode.
        """
        mode = TransportMode.DIRECT_NFS
        able = [
            place
            for place, reason in enumerate(self.columns[mode])
            if not reason and _is_there(self.proxies[place])
        ]
        if not able:
            return
        hops = {place: _hops(self.proxies[place], self.wish) for place in able}
        nearest = min(able, key=lambda place: (hops[place], self.proxies[place].name))
        if not self.wish.proxies:
            far = {place for place in able if hops[place] > hops[nearest]}
            if far:
                start = (
                    f"{self.proxies[nearest].name} is nearer to the NFS server: "
                    f"{_routers(hops[nearest])} on the way"
                )
                self._add(
                    mode,
                    lambda place: f"{start}, {_routers(hops[place])} from here" if place in far else "",
                )
            able = [place for place in able if place not in far]
        names = list_names([self.proxies[place].name for place in able])
        text = f"the disk waits for {mode.value}, by which {names} can read it"
        for worse in self.modes:
            if RANKS[worse] > RANKS[mode]:
                self._add(worse, lambda _: text)

    def best(self) -> dict[str, TransportMode]:
        found: dict[str, TransportMode] = {}
        for mode in reversed(self.modes):
            found.update(
                (proxy.id, mode)
                for proxy, reason in zip(self.proxies, self.columns[mode], strict=True)
                if not reason
            )
        return found

    def far(self) -> frozenset[tuple[str, TransportMode]]:
        """Pairs for which another place than that proxy would be nearer to what the mode reads, as far as that is
        known.
        """
        reach = self.wish.reach
        if reach is None:
            return frozenset()
        found: set[tuple[str, TransportMode]] = set()
        if reach.networks:
            found.update(
                (proxy.id, mode)
                for proxy in self.proxies
                if proxy.machine is None or not set(proxy.machine.networks) & set(reach.networks)
                for mode in self.modes
                if mode in NETWORK_MODES
            )
        if reach.data_hosts and TransportMode.HOTADD in self.modes:
            found.update(
                (proxy.id, TransportMode.HOTADD)
                for proxy in self.proxies
                if proxy.machine is None
                or not any(
                    vm.vcenter_id == reach.vcenter_id and vm.host_moref in reach.data_hosts
                    for vm in proxy.machine.vms
                )
            )
        return frozenset(found)


def _is_there(proxy: ProxyFacts) -> bool:
    return proxy.online and not proxy.stopping and not proxy.trouble and proxy.slots > 0


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


# ---- words ----------------------------------------------------------------------------------------


def not_now(proxy: ProxyFacts) -> str:
    """Why it takes no task at this moment; empty: it may."""
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


def grouped_by_reason(said: Iterable[tuple[str, str]]) -> str:
    """`said`: pairs of a proxy's name and the reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in said:
        by_reason.setdefault(reason, []).append(name)
    return "; ".join(f"{list_names(names)}: {reason}" for reason, names in by_reason.items())


def list_names(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    shown = ", ".join(names[:NAMED_PROXIES])
    more = len(names) - NAMED_PROXIES
    return f"{shown} and {more} more" if more > 0 else shown
