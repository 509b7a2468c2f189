"""A round is what its seed says, and over many rounds everything comes up."""

from __future__ import annotations

from tests.chaos.plan import LEASE_S, POSTGRES, VMS, FaultKind, Link, draw


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
        }
        assert fault.part in there, (plan.number, fault)
    assert {plan.servers for plan in plans} == {1, 2}
    assert {plan.postgres for plan in plans} == {True, False}
    assert all(plan.postgres for plan in plans if plan.servers == 2)
