from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_server.services.placement import (
    FILE_MODE,
    RANKS,
    Limit,
    ProxyFacts,
    Wish,
    decide,
    reach,
    wish_of,
)
from transports.base import TransportMode

NBD, NBDSSL, SAN = TransportMode.NBD, TransportMode.NBDSSL, TransportMode.DIRECT_SAN


def proxy(name: str, **changes: object) -> ProxyFacts:
    base = ProxyFacts(
        id=name,
        name=name,
        enabled=True,
        enrolled=True,
        online=True,
        stopping=False,
        slots=4,
        used=0,
        offered_modes=(NBDSSL, NBD),
        allowed_modes=(),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def wish(*modes: TransportMode, proxies: tuple[str, ...] = ()) -> Wish:
    return wish_of("backup-disk", "vc/ds", proxies, [mode.value for mode in modes])


def test_nbd_only_where_the_job_names_it() -> None:
    assert reach(proxy("a"), wish()) is NBDSSL
    assert reach(proxy("a", offered_modes=(NBD,)), wish()) is None
    assert reach(proxy("a", offered_modes=(NBD,)), wish(NBD)) is NBD
    assert reach(proxy("a"), wish(NBD, NBDSSL)) is NBDSSL


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"enabled": False}, "disabled"),
        ({"enrolled": False}, "not enrolled"),
        ({"online": False}, "offline"),
        ({"stopping": True}, "stopping"),
        ({"used": 4}, "all 4 task slots"),
        ({"offered_modes": (NBD,)}, "does not offer nbdssl"),
        ({"allowed_modes": (NBD,)}, "switched off"),
    ],
)
def test_every_refusal_has_its_reason(changes: dict[str, object], reason: str) -> None:
    decision = decide(wish(), [proxy("a", **changes), proxy("z", enrolled=False)], [])
    assert decision.chosen is None
    assert reason in decision.candidates[0].reason
    assert reason in decision.reason


def test_jobs_that_name_proxies() -> None:
    decision = decide(wish(proxies=("b",)), [proxy("a"), proxy("b", used=3)], [])
    assert decision.chosen is not None
    assert decision.chosen.proxy_id == "b"
    assert decision.candidates[0].reason == "the job names other proxies"


def test_best_mode_first_then_least_busy() -> None:
    san = proxy("san", offered_modes=(SAN, NBDSSL), used=3)
    decision = decide(wish(), [proxy("a", used=2), san, proxy("b", used=1)], [])
    assert decision.chosen is not None
    assert (decision.chosen.proxy_id, decision.chosen.mode) == ("san", SAN)
    decision = decide(wish(), [proxy("a", used=2), proxy("b", used=1), proxy("c", slots=8, used=1)], [])
    assert decision.chosen is not None
    assert decision.chosen.proxy_id == "c"


def test_limits_refuse_everybody() -> None:
    full = Limit(what="repository main", used=2, maximum=2)
    free = Limit(what="datastore ds", used=0, maximum=0)
    decision = decide(wish(), [proxy("a")], [full, free])
    assert decision.chosen is None
    assert decision.candidates[0].reason == "repository main has all 2 tasks it may have"


def test_a_claim_is_confirmed_for_its_proxy_or_not_at_all() -> None:
    proxies = [proxy("a"), proxy("b", used=3)]
    claimed = decide(wish(), proxies, [], claimed_by="b")
    assert claimed.chosen is not None
    assert claimed.chosen.proxy_id == "b"
    assert len(claimed.candidates) == 2
    assert decide(wish(), [proxy("a"), proxy("b", used=4)], [], claimed_by="b").chosen is None


def test_restores_to_files_need_no_mode() -> None:
    to_file = wish_of("restore-disk-to-file", "", ["a"], ["nbd"])
    assert to_file.modes == ()
    assert reach(proxy("a", offered_modes=()), to_file) is FILE_MODE
    assert decide(to_file, [proxy("a", offered_modes=())], []).chosen is not None


def test_no_proxy_at_all() -> None:
    decision = decide(wish(), [], [])
    assert "vmhaul proxy add" in decision.reason
    assert decision.to_json()["proxy"] is None


def test_a_large_fleet_is_named_in_part_and_counted() -> None:
    fleet = [proxy(f"p{n:03}", online=n % 2 == 0) for n in range(200)]
    decision = decide(wish(), fleet, [], claimed_by="p100")
    stored = decision.to_json()
    assert len(decision.candidates) == 200
    assert len(stored["candidates"]) == 32
    assert stored["candidates"][0]["proxy"] == "p100"
    assert stored["others"] == {"accepted": 68, "the proxy is offline": 100}
    reason = decide(wish(), [proxy(f"p{n}", online=False) for n in range(9)], []).reason
    assert reason == "p0, p1, p2, p3, p4 and 4 more: the proxy is offline"


def test_wishes_with_the_same_content_have_one_key() -> None:
    one = wish_of("backup-disk", "ds", ["b", "a"], ["nbd", "nbdssl"])
    assert one.key == wish_of("backup-disk", "ds", ["a", "b"], ["nbdssl", "nbd"]).key
    others = [
        wish_of("backup-disk", "ds2", ["a", "b"], ["nbdssl", "nbd"]),
        wish_of("backup-disk", "ds", ["a"], ["nbdssl", "nbd"]),
        wish_of("backup-disk", "ds", ["a", "b"], ["nbd"]),
    ]
    assert len({one.key, *(other.key for other in others)}) == 4


PROXIES = st.lists(
    st.builds(
        ProxyFacts,
        id=st.sampled_from("abcdef"),
        name=st.sampled_from("abcdef"),
        enabled=st.booleans(),
        enrolled=st.booleans(),
        online=st.booleans(),
        stopping=st.booleans(),
        slots=st.integers(0, 3),
        used=st.integers(0, 3),
        offered_modes=st.lists(st.sampled_from(TransportMode), unique=True).map(tuple),
        allowed_modes=st.lists(st.sampled_from(TransportMode), unique=True).map(tuple),
    ),
    max_size=6,
    unique_by=lambda facts: facts.id,
)
WISHES = st.builds(
    wish_of,
    kind=st.sampled_from(["backup-disk", "restore-disk-to-file"]),
    datastore=st.just("ds"),
    allowed_proxies=st.lists(st.sampled_from("abcdef"), unique=True),
    allowed_modes=st.lists(st.sampled_from([m.value for m in TransportMode]), unique=True),
)


@given(PROXIES, WISHES, st.integers(0, 2))
def test_the_chosen_one_is_the_best_that_may(
    proxies: list[ProxyFacts], wanted: Wish, used: int
) -> None:
    decision = decide(wanted, proxies, [Limit(what="x", used=used, maximum=2)])
    accepted = [candidate for candidate in decision.candidates if candidate.accepted]
    assert (decision.chosen is None) == (not accepted)
    assert all(candidate.accepted != bool(candidate.reason) for candidate in decision.candidates)
    if decision.chosen is None:
        return
    assert used < 2
    by_id = {facts.id: facts for facts in proxies}
    chosen = by_id[decision.chosen.proxy_id]
    assert chosen.online
    assert chosen.enabled
    assert chosen.used < chosen.slots
    assert reach(chosen, wanted) is decision.chosen.mode
    assert RANKS[decision.chosen.mode] == min(RANKS[candidate.mode] for candidate in accepted)
