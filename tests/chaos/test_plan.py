"""A round is what its seed says, and over many rounds everything comes up."""

from __future__ import annotations

from tests.chaos.draw import draw
from tests.chaos.plan import (
    LEASE_S,
    LUN_STORAGE,
    NFS_STORAGE,
    OBJECTS,
    POSTGRES,
    VMS,
    FaultKind,
    Link,
    Storage,
)


def test_a_seed_and_a_number_are_one_round() -> None:
    assert draw(7, 3) == draw(7, 3)
    assert draw(7, 3) != draw(7, 4)
    assert draw(7, 3) != draw(8, 3)


def test_every_fault_comes_up_and_hits_what_is_there() -> None:
    plans = [draw(1, number) for number in range(1, 401)]
    faults = [(plan, fault) for plan in plans for fault in plan.faults]
    assert {fault.kind for _, fault in faults} == set(FaultKind)
    assert {fault.link for _, fault in faults if fault.kind is FaultKind.CUT} == {
        link.value for link in Link
    }
    stops = [fault.lasts_s for _, fault in faults if fault.kind is FaultKind.STOP]
    assert min(stops) < LEASE_S < max(stops)
    for plan, fault in faults:
        assert 0 <= fault.at_s < plan.lasts_s
        there = {
            *plan.server_names,
            *plan.proxy_names,
            "redis",
            *VMS,
            "",
            *([POSTGRES] if plan.postgres else []),
            *([OBJECTS] if plan.objects else []),
            *plan.proxy_vms,
        }
        assert fault.part in there, (plan.number, fault)
    assert {plan.servers for plan in plans} == {1, 2}
    assert {plan.postgres for plan in plans} == {True, False}
    assert all(plan.postgres for plan in plans if plan.servers == 2)


def test_every_storage_comes_up_with_what_can_happen_to_it() -> None:
    plans = [draw(1, number) for number in range(1, 401)]
    assert {plan.storage for plan in plans} == set(Storage)
    assert {plan.objects for plan in plans} == {True, False}
    for plan in plans:
        kinds = {fault.kind for fault in plan.faults}
        assert FaultKind.NFS_GONE not in kinds or plan.storage in NFS_STORAGE
        assert FaultKind.UNZONED not in kinds or plan.storage in LUN_STORAGE
        assert FaultKind.ARRAY_REFUSES not in kinds or plan.storage is Storage.ARRAY
        assert FaultKind.ISOLATED not in kinds or plan.far_servers
        for fault in plan.faults:
            cut = fault.kind is FaultKind.CUT
            assert not (cut and fault.part in plan.server_names) or plan.far_servers
            assert not (cut and fault.link == Link.DATABASE) or plan.postgres
            assert not (cut and fault.link == Link.OBJECTS) or plan.objects
