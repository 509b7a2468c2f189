"""Max-min fairness, whatever limits hold whatever tasks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backup_server.services.rates import share

LIMITS = st.dictionaries(
    st.sampled_from([f"rule-{n}" for n in range(6)]), st.integers(1_000_000, 10_000_000_000), min_size=1
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, frozenset[str]], dict[str, int]]:
    limits = draw(LIMITS)
    names = st.frozensets(st.sampled_from(sorted(limits)))
    held = draw(st.lists(names, max_size=40))
    return {f"task-{n}": each for n, each in enumerate(held)}, limits


def total(rates: dict[str, int | None], held: dict[str, frozenset[str]], name: str) -> int:
    return sum(rates[task] or 0 for task, names in held.items() if name in names)


@given(cases())
def test_no_limit_is_exceeded_and_a_task_that_none_holds_is_free(
    case: tuple[dict[str, frozenset[str]], dict[str, int]],
) -> None:
    held, limits = case
    rates = share(held, limits)
    assert rates.keys() == held.keys()
    for name, most in limits.items():
        assert total(rates, held, name) <= most
    for task, names in held.items():
        assert (rates[task] is None) == (not names)


@given(cases())
def test_each_task_has_a_limit_that_is_used_up_and_in_which_nobody_has_more(
    case: tuple[dict[str, frozenset[str]], dict[str, int]],
) -> None:
    """Which is what max-min fair means: to give it more, somebody who has no more would have to have less."""
    held, limits = case
    rates = share(held, limits)
    for task, names in held.items():
        if not names:
            continue
        own = rates[task]
        assert own is not None
        assert any(
            # a byte of each task may be lost to whole numbers
            total(rates, held, name) >= limits[name] - len(held)
            and all((rates[other] or 0) <= own + 1 for other, among in held.items() if name in among)
            for name in names
        )


@given(cases())
def test_a_task_that_ends_leaves_its_part_to_the_others(
    case: tuple[dict[str, frozenset[str]], dict[str, int]],
) -> None:
    held, limits = case
    before = share(held, limits)
    if len(held) < 2:
        return
    gone = min(held)
    after = share({task: names for task, names in held.items() if task != gone}, limits)
    smallest = min((rate for rate in before.values() if rate is not None), default=None)
    for task, rate in after.items():
        was = before[task]
        assert (rate is None) == (was is None)
        if rate is not None and all(held[gone].isdisjoint(held[task]) for task in after):
            assert rate == was  # nobody shared a limit with it
    if smallest is not None:
        assert (
            min((rate for rate in after.values() if rate is not None), default=smallest) >= smallest - 1
        )


def test_one_rule_is_divided_equally_and_the_lowest_wins() -> None:
    limits = {"all": 100, "branch": 10, "slow": 4}
    held = {
        "a": {"all"},
        "b": {"all"},
        "c": {"all", "branch"},
        "d": {"all", "branch", "slow"},
        "e": set[str](),
    }
    assert share(held, limits) == {"a": 45, "b": 45, "c": 6, "d": 4, "e": None}


@st.composite
def wishful(
    draw: st.DrawFn,
) -> tuple[dict[str, frozenset[str]], dict[str, int], dict[str, float]]:
    """Cases, and what some tasks want: about as much as they would have if all wanted the same."""
    held, limits = draw(cases())
    wants = {}
    for task, names in held.items():
        if names and draw(st.booleans()):
            name = draw(st.sampled_from(sorted(names)))
            among = sum(name in others for others in held.values())
            wants[task] = draw(st.floats(0, 2)) * limits[name] / among
    return held, limits, wants


@given(wishful())
def test_what_one_does_not_want_goes_to_others_and_nobody_loses(
    case: tuple[dict[str, frozenset[str]], dict[str, int], dict[str, float]],
) -> None:
    held, limits, wants = case
    rates = share(held, limits, wants)
    assert rates.keys() == held.keys()
    for name, most in limits.items():
        assert total(rates, held, name) <= most + len(held)  # a byte for each that wants nothing
    for task, names in held.items():
        own = rates[task]
        assert (own is None) == (not names)
        if own is None:
            continue
        # It could have no more: one of its limits is used up,
        full = [name for name in names if total(rates, held, name) >= limits[name] - 2 * len(held)]
        assert full
        if own < wants.get(task, float("inf")) - 1:
            # and there nobody has more than he who would make use of it.
            assert any(
                all((rates[other] or 0) <= own + 2 for other, among in held.items() if name in among)
                for name in full
            )


def test_what_a_slow_one_leaves_is_divided() -> None:
    held = {name: {"all"} for name in "abc"}
    assert share(held, {"all": 90}, {"a": 10}) == {"a": 10, "b": 40, "c": 40}
    assert share(held, {"all": 90}, {"a": 10, "b": 20, "c": 30}) == {"a": 20, "b": 30, "c": 40}
    assert share(held, {"all": 90}, {"a": 50}) == {"a": 30, "b": 30, "c": 30}
    two = {"a": {"all", "branch"}, "b": {"all"}}
    assert share(two, {"all": 90, "branch": 60}, {"a": 5}) == {"a": 5, "b": 85}
