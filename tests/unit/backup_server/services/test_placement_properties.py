"""Whatever a fleet and a wish look like: the choice among proxies is the best that may be, and load changes no reach."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from backup_server.services.lineup import confirm, lineup
from backup_server.services.placement import NAMED_CANDIDATES, Limit, decide, said_of
from backup_server.services.surveys import RANKS, ProxyFacts, Surveyor, survey
from backup_server.services.wishes import Wish, wish_of
from tests.unit.backup_server.services.test_placement import BACKUP, DISK, NFS, SAN, VM
from transports.base import TransportMode
from transports.rules import NETWORK_MODES, Connected, ProxyMachine, StorageSnapshotFacts

MODES = st.lists(st.sampled_from(TransportMode), unique=True).map(tuple)
MACHINES = st.builds(
    ProxyMachine,
    id=st.just("x"),
    vm_uuid=st.just("420a1b2c-3d4e-5f60-7182-93a4b5c6d7e8"),
    vms=st.lists(st.just(VM), max_size=2).map(tuple),
    connections=st.dictionaries(
        st.tuples(st.just("vc/ds"), st.sampled_from([SAN, NFS])),
        st.builds(Connected, readable=st.booleans(), writable=st.booleans(), hops=st.integers(-1, 3)),
    ),
    offered_modes=MODES,
)
PROXIES = st.lists(
    st.builds(
        lambda name, **rest: ProxyFacts(id=name, name=name, **rest),
        name=st.sampled_from("abcdef"),
        enabled=st.booleans(),
        enrolled=st.booleans(),
        online=st.booleans(),
        stopping=st.booleans(),
        slots=st.integers(0, 3),
        used=st.integers(0, 3),
        offered_modes=MODES,
        allowed_modes=MODES,
        failover_to_network=st.booleans(),
        machine=st.none() | MACHINES,
    ),
    max_size=6,
    unique_by=lambda facts: facts.id,
)
DISKS = st.builds(
    replace,
    st.just(DISK),
    datastore_kind=st.sampled_from(["VMFS", "NFS", "NFS41", "vsan"]),
    controller=st.sampled_from(["SCSI", "IDE"]),
    encrypted=st.booleans(),
    is_delta=st.booleans(),
    storage_snapshot=st.none() | st.builds(StorageSnapshotFacts, system=st.sampled_from(["", "array"])),
)
WISHES = st.builds(
    wish_of,
    kind=st.sampled_from([BACKUP, "restore-disk-to-file"]),
    disk=st.none() | DISKS,
    allowed_proxies=st.lists(st.sampled_from("abcdef"), unique=True),
    allowed_modes=st.lists(st.sampled_from([m.value for m in TransportMode]), unique=True),
    left=st.lists(
        st.tuples(
            st.sampled_from("abcdef"), st.sampled_from([m.value for m in TransportMode]), st.just("x")
        ),
        max_size=3,
    ),
    failover=st.booleans(),
    near=st.lists(st.sampled_from("abcdef"), unique=True, max_size=2).map(tuple),
)
LIMITS = st.builds(
    Limit,
    what=st.just("x"),
    used=st.integers(0, 2),
    maximum=st.just(2),
    modes=st.none() | st.just(NETWORK_MODES),
)


@given(PROXIES, WISHES, LIMITS)
def test_the_chosen_one_is_the_best_that_may(
    proxies: list[ProxyFacts], wanted: Wish, limit: Limit
) -> None:
    decision = decide(wanted, proxies, [limit])
    accepted = [candidate for candidate in decision.candidates if candidate.accepted]
    assert (decision.chosen is None) == (not accepted)
    assert all(candidate.accepted != bool(candidate.reason) for candidate in decision.candidates)
    pairs = [(candidate.proxy_id, candidate.mode) for candidate in decision.candidates]
    assert len(set(pairs)) == len(pairs)
    assert bool(decision.reason) or not proxies
    if decision.chosen is None:
        assert decision.fallbacks == ()
        return
    by_id = {facts.id: facts for facts in proxies}
    chosen = by_id[decision.chosen.proxy_id]
    assert decision.chosen in accepted
    assert chosen.online
    assert chosen.enabled
    assert chosen.used < chosen.slots
    assert not wanted.proxies or chosen.id in wanted.proxies
    mode = decision.chosen.mode
    assert (chosen.id, mode.value, "x") not in wanted.left
    assert RANKS[mode] == min(RANKS[candidate.mode] for candidate in accepted)
    load = min(one.used / one.slots for one in accepted if one.mode is mode)
    assert decision.chosen.used / decision.chosen.slots == load
    assert all(RANKS[other] > RANKS[mode] for other in decision.fallbacks)
    assert set(decision.fallbacks) <= set(chosen.offered_modes) & set(wanted.modes)


@given(PROXIES, WISHES)
def test_a_survey_knows_nothing_of_load(proxies: list[ProxyFacts], wanted: Wish) -> None:
    idle = [replace(one, used=0) for one in proxies]
    seen: Any = survey(wanted, proxies)
    assert seen == survey(wanted, idle)
    decision = decide(wanted, proxies, [], known=survey(wanted, idle))
    assert decision == decide(wanted, proxies, [])
    if decision.chosen is not None:
        assert seen.best[decision.chosen.proxy_id] is decision.chosen.mode
    # Where no network mode may take over, none is chosen beside a mode that can read the disk.
    direct = any(mode not in NETWORK_MODES and not reason for (_, mode), reason in seen.reasons.items())
    if direct and not wanted.failover:
        assert not NETWORK_MODES & set(seen.best.values())


FLEETS = PROXIES.map(lambda some: sorted(some, key=lambda one: one.name))


@given(FLEETS, FLEETS, st.lists(WISHES, max_size=4), st.data())
def test_a_fleet_that_is_followed_is_surveyed_as_one_that_is_new(
    before: list[ProxyFacts], after: list[ProxyFacts], wishes: list[Wish], data: st.DataObject
) -> None:
    """Whatever is kept of what the rules said: of proxies that changed, and of wishes that share it."""
    if data.draw(st.booleans()):
        known = {one.id: one for one in after}
        after = [known.get(one.id, one) for one in before]  # the same ones, changed
    surveyor = Surveyor(before)
    for wanted in wishes:
        assert surveyor.survey(wanted) == survey(wanted, before)
    surveyor.follow(after)
    surveyor.forget_but(wishes[:1])
    for wanted in wishes:
        seen = surveyor.survey(wanted)
        assert seen == survey(wanted, after)
        assert seen.ranks() == {proxy_id: seen.rank(proxy_id) for proxy_id in seen.best}


@given(FLEETS, WISHES)
def test_a_lineup_says_of_each_proxy_what_a_decision_says(
    proxies: list[ProxyFacts], wanted: Wish
) -> None:
    if wanted.impossible:
        return
    lined_up = lineup(wanted, proxies)
    decision = decide(wanted, proxies, [])
    assert lined_up.counted == Counter(said_of(candidate) for candidate in decision.candidates)
    assert set(lined_up.named) <= set(decision.candidates)
    assert len(lined_up.named) == min(len(decision.candidates), NAMED_CANDIDATES)
    for proxy in proxies:
        alone = decide(wanted, proxies, [], claimed_by=proxy.id).chosen
        by_lineup = confirm(lined_up, proxy, taken=proxy.used)
        assert (by_lineup and by_lineup.chosen) == alone
