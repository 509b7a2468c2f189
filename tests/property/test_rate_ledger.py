"""Whatever becomes of the orders, nobody is given what another may still be using.

Movers hold the rate that they heard last. Orders reach them late, or never; what they tell is heard late. A step of
the test is one of these things, or a round of the server.
"""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from backup_server.services.rate_ledger import NEAR_BYTES_PER_S, Ledger
from backup_server.services.rates import share

LIMIT = 1_000_000
MOST_TASKS = 6
SLACK = 16 * MOST_TASKS
"""Bytes a second: nobody is told to stand still."""


class Mover:
    def __init__(self, rate: int | None) -> None:
        self.rate = rate
        self.orders: deque[int | None] = deque()
        self.stored = rate

    def fastest(self) -> float:
        """With what is on its way to it."""
        return max(float("inf") if one is None else one for one in (self.rate, *self.orders))


class World:
    def __init__(self) -> None:
        self.now = datetime(2026, 11, 23, 2, 30, tzinfo=UTC)
        self.ledger = Ledger()
        self.limit = LIMIT
        self.movers: dict[str, Mover] = {}
        self.told: dict[str, int] = {}
        self.wants: dict[str, float] = {}
        self.made = 0

    def rates(self) -> tuple[dict[str, frozenset[str]], dict[str, float], dict[str, int | None]]:
        held = dict.fromkeys(self.movers, frozenset({"rule"}))
        limits = {"rule": float(self.limit)}
        return held, limits, share(held, limits, self.wants)

    def fastest(self) -> float:
        return sum(mover.fastest() for mover in self.movers.values())

    # -- what may happen

    def start(self) -> None:
        if len(self.movers) == MOST_TASKS:
            return
        self.made += 1
        name = f"task-{self.made}"
        self.movers[name] = Mover(None)
        held, limits, rates = self.rates()
        first = self.ledger.orders(held, limits, rates, among=[name])[name]
        self.ledger.begin(name, 1, first, self.now)
        self.movers[name] = Mover(first)

    def end(self, at: int) -> None:
        name = self.some(at)
        if name:
            del self.movers[name]
            self.told.pop(name, None)
            self.wants.pop(name, None)

    def hear(self, at: int, *, lost: bool = False) -> None:
        name = self.some(at)
        if name and self.movers[name].orders:
            rate = self.movers[name].orders.popleft()
            if not lost:
                self.movers[name].rate = rate

    def tell(self, at: int) -> None:
        name = self.some(at)
        if name:
            self.told[name] = self.movers[name].rate or 0

    def want(self, at: int, share_of_limit: float) -> None:
        name = self.some(at)
        if name:
            self.wants[name] = share_of_limit * self.limit

    def round(self) -> None:
        self.now += timedelta(seconds=2)
        self.ledger.keep(self.movers.keys(), self.now)
        for name, mover in self.movers.items():
            told = self.told.get(name)
            # One that tells nothing yet is assumed to have heard after a while, as its worker keeps what comes early.
            if told is None:
                mover.rate = mover.orders.pop() if mover.orders else mover.rate
                mover.orders.clear()
            self.ledger.follow(name, 1, told=told, stored=mover.stored, now=self.now)
        held, limits, rates = self.rates()
        for name, rate in self.ledger.orders(held, limits, rates).items():
            mover = self.movers[name]
            if rate != mover.stored or self.told.get(name) != (rate or 0):
                mover.orders.append(rate)
            mover.stored = rate
            self.ledger.say(name, rate, self.now)

    def restart(self) -> None:
        """Of the server: what it had in memory is gone."""
        self.ledger.clear()

    def some(self, at: int) -> str:
        names = sorted(self.movers)
        return names[at % len(names)] if names else ""


INDEX = st.integers(0, MOST_TASKS - 1)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("start")),
        st.tuples(st.just("round")),
        st.tuples(st.sampled_from(["end", "hear", "lose", "tell"]), INDEX),
        st.tuples(st.just("want"), INDEX, st.floats(0.01, 1.0)),
        st.tuples(st.just("limit"), st.integers(100_000, 3_000_000)),
    ),
    max_size=60,
)


def play(world: World, step: tuple[object, ...]) -> None:
    match step:
        case ("start",):
            world.start()
        case ("round",):
            world.round()
        case ("end", int(at)):
            world.end(at)
        case ("hear", int(at)):
            world.hear(at)
        case ("lose", int(at)):
            world.hear(at, lost=True)
        case ("tell", int(at)):
            world.tell(at)
        case ("want", int(at), float(part)):
            world.want(at, part)
        case ("limit", int(limit)):
            world.limit = limit


@given(STEPS)
def test_the_sum_does_not_rise_above_the_rule(steps: list[tuple[object, ...]]) -> None:
    world = World()
    for step in steps:
        before = world.fastest()
        play(world, step)
        assert world.fastest() <= max(world.limit, before) + SLACK, step


@given(STEPS, st.booleans())
def test_everybody_comes_to_his_rate_once_all_is_heard(
    steps: list[tuple[object, ...]], restarted: bool
) -> None:
    world = World()
    for step in steps:
        play(world, step)
    if restarted:
        world.restart()
    for _ in range(4):
        world.round()
        for at in range(len(world.movers)):
            while world.movers[world.some(at)].orders:
                world.hear(at)
            world.tell(at)
    _, _, rates = world.rates()
    for name, mover in world.movers.items():
        rate = rates[name]
        assert rate is not None
        assert mover.rate is not None
        assert abs(mover.rate - rate) <= NEAR_BYTES_PER_S + SLACK, (name, rates)


def test_who_is_told_to_be_slower_counts_until_he_is() -> None:
    world = World()
    world.start()
    world.round()
    world.tell(0)
    world.start()
    assert world.movers["task-2"].rate == 1, "all of it is taken"
    world.round()
    world.round()
    assert world.movers["task-2"].fastest() <= 2, "nothing was heard of the first"
    while world.movers["task-1"].orders:
        world.hear(0)
    world.tell(0)
    world.round()
    assert world.movers["task-2"].fastest() == LIMIT // 2


def test_a_rate_that_comes_again_is_told_from_the_old_one() -> None:
    """Half, all, half: hearing of a half does not tell which."""
    now = datetime(2026, 11, 23, tzinfo=UTC)
    ledger = Ledger()
    ledger.begin("a", 1, 500, now)
    ledger.follow("a", 1, told=500, stored=500, now=now)
    ledger.say("a", 1000, now)
    held, limits = {"a": {"rule"}}, {"rule": 5000.0}
    order = ledger.orders(held, limits, {"a": 500})["a"]
    assert order == 499
    ledger.say("a", order, now)
    ledger.follow("a", 1, told=500, stored=order, now=now)
    assert (ledger["a"].at_most, ledger["a"].holds) == (1000, False)
    ledger.follow("a", 1, told=499, stored=order, now=now)
    assert (ledger["a"].at_most, ledger["a"].holds) == (499, True)
