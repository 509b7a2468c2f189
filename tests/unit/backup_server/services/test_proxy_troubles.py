from __future__ import annotations

import pytest

from backup_server.services.proxy_troubles import (
    clock_trouble,
    follow_boots,
    has_twin,
    is_replaced,
    version_trouble,
    words_of,
)


def heard(*beats: tuple[str, float]) -> dict[str, object]:
    kept: dict[str, object] = {}
    for beat in beats:
        kept = follow_boots(kept, [beat])
    return kept


def test_restarts_are_no_twins() -> None:
    boots = heard(*((f"boot{i // 3}", 10.0 * i) for i in range(60)))
    assert not has_twin(boots)
    assert is_replaced(boots, "boot18")
    assert not is_replaced(boots, "boot19")
    assert len(boots["known"]) == 8  # type: ignore[arg-type]


def test_two_that_take_turns_are_found_within_a_few_heartbeats() -> None:
    beats = [("ab"[i % 2], 100.0 + 5 * i) for i in range(10)]
    found = next(i for i in range(len(beats)) if has_twin(heard(*beats[: i + 1])))
    assert found <= 5
    # and all in one reading, or whichever way they are cut
    assert has_twin(follow_boots({}, beats))
    assert has_twin(heard(*beats))


def test_what_comes_late_from_a_dead_worker_is_no_twin() -> None:
    # Said before the new one began, delivered afterwards by a network that came back.
    late = [("a", 100.0), ("b", 120.0), ("a", 105.0), ("b", 125.0), ("a", 110.0), ("b", 130.0)]
    assert not has_twin(heard(*late))
    # Even where the dead one's clock was ahead: a burst counts once.
    ahead = [("a", 400.0), ("b", 120.0), ("a", 405.0), ("a", 410.0), ("a", 415.0), ("b", 125.0)]
    assert not has_twin(heard(*ahead))


def test_a_twin_that_speaks_seldom_is_found_as_well() -> None:
    beats = [
        ("a", 0.0),
        *(("b", float(i)) for i in range(1, 10)),
        ("a", 11.0),
        ("b", 12.0),
        ("a", 20.0),
    ]
    assert has_twin(heard(*beats))


@pytest.mark.parametrize(("offset_s", "wrong"), [(0, False), (240, False), (-241, True), (299, True)])
def test_clocks(offset_s: float, wrong: bool) -> None:
    assert bool(clock_trouble(offset_s)) is wrong


@pytest.mark.parametrize(
    ("version", "wrong"),
    [
        ("0.4.0", ""),
        ("0.5.0", ""),
        ("0.5.1.dev3", ""),
        ("0.6.0", ""),
        ("unknown", ""),
        ("", ""),
        ("0.3.1", "vmhaul proxy upgrade px1"),
        ("0.7.0", "upgrade the server"),
        ("1.0.0", "upgrade the server"),
    ],
)
def test_releases(version: str, wrong: str) -> None:
    said = version_trouble("px1", version)
    assert bool(said) is bool(wrong)
    assert wrong in said


def test_words() -> None:
    assert words_of({}) == ""
    assert words_of({"troubles": {"version": "b", "clock": "a"}}) == "a; b"
