"""A clock that jumps, and vmhaul-keeper."""

from __future__ import annotations

import pytest

from proxy_worker.keeper import DAY_S, Refused
from tests.integration.keeper.rig import START, Rig


def test_a_clock_set_forward_releases_nothing_until_root_confirms(rig: Rig) -> None:
    name = rig.put("packs/one")
    rig.keep(name, START + 30 * DAY_S)
    rig.times.wall_s += 60 * DAY_S
    for _ in range(2):
        with pytest.raises(Refused, match="set forward by 5184000 s"):
            rig.keeper.release()
        rig.start()  # starting again does not help
    rig.times.wall_s -= 60 * DAY_S
    with pytest.raises(Refused, match="confirm-clock"):
        rig.keeper.release()
    rig.journal.note(confirmed="yes")
    rig.start()
    assert rig.keeper.release() == 0
    assert rig.is_immutable(name)


def test_many_small_steps_forward_add_up(rig: Rig) -> None:
    rig.keep(rig.put("packs/one"), START + DAY_S)
    for _ in range(3):
        rig.times.wall_s += 1700
        if rig.times.wall_s - START <= 3600:
            assert rig.keeper.release() == 0
    with pytest.raises(Refused, match="set forward"):
        rig.keeper.release()


def test_within_the_hour_monotonic_time_counts(rig: Rig) -> None:
    name = rig.put("packs/one")
    rig.keep(name, START + 3000)
    rig.times.wall_s += 3500
    assert rig.keeper.release() == 0
    assert rig.is_immutable(name)


def test_a_clock_set_back_keeps_longer(rig: Rig) -> None:
    rig.keep(rig.put("packs/one"), START + 100)
    rig.times.wall_s -= 1000
    rig.times.pass_(500)
    assert rig.keeper.release() == 0
    rig.times.pass_(700)
    assert rig.keeper.release() == 1


def test_time_goes_on_while_the_keeper_is_stopped(rig: Rig) -> None:
    rig.keep(rig.put("packs/one"), START + 100)
    rig.times.pass_(30 * DAY_S)  # of the same boot: the monotonic clock vouches for it
    rig.start()
    assert rig.keeper.release() == 1


@pytest.mark.parametrize(("days", "is_trusted"), [(6, True), (8, False)])
def test_a_machine_that_was_off_for_long_needs_a_word(rig: Rig, days: int, is_trusted: bool) -> None:
    rig.keep(rig.put("packs/one"), START + 100)
    rig.times.wall_s += days * DAY_S
    rig.times.passed_s = 5.0
    rig.times.boot = "second boot"
    rig.start()
    if is_trusted:
        assert rig.keeper.release() == 1
        return
    with pytest.raises(Refused, match=r"8\.0 days"):
        rig.keeper.release()
    rig.journal.note(confirmed="yes")
    rig.start()
    assert rig.keeper.release() == 1
