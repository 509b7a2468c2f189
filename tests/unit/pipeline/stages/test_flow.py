"""Queues between the stages: nothing is lost, nobody waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from pipeline.stages.flow import TOGETHER, Channel, Flow, FlowStopped

PATIENCE_S = 120
"""Of the tests, not a measure."""


class BrokenError(Exception):
    """What a stage of these tests fails with."""


def ended(flow: Flow) -> None:
    flow.join(lambda: None, 0.01)


def test_oldest_or_newest_first() -> None:
    flow = Flow()
    queue: Channel[int] = Channel(flow, 3)
    pool: Channel[int] = Channel(flow, 3, newest_first=True)
    for number in range(3):
        queue.put(number)
        pool.put(number)
    assert [queue.get() for _ in range(3)] == [0, 1, 2]
    assert [pool.get() for _ in range(3)] == [2, 1, 0]


@pytest.mark.parametrize("is_urgent", [True, False])
@pytest.mark.parametrize("capacity", [1, 2, TOGETHER + 1])
def test_each_item_arrives_once(capacity: int, *, is_urgent: bool) -> None:
    """More threads than room: both sides have to wait, and be woken, all the time."""
    flow = Flow()
    channel: Channel[int | None] = Channel(flow, capacity)
    arrived: list[int] = []
    lock = threading.Lock()

    def putting(first: int) -> Callable[[], None]:
        def put() -> None:
            for number in range(first, first + 200):
                channel.put(number, is_urgent=is_urgent)
            channel.put(None)

        return put

    def get() -> None:
        while (number := channel.get()) is not None:
            with lock:
                arrived.append(number)

    for worker in range(3):
        flow.start(f"put-{worker}", putting(1000 * worker))
        flow.start(f"get-{worker}", get)
    ended(flow)
    assert sorted(arrived) == [1000 * worker + number for worker in range(3) for number in range(200)]


@pytest.mark.parametrize("side", ["put", "get", "get_unless"])
def test_who_waits_ends_when_another_stage_fails(side: str) -> None:
    flow = Flow()
    channel: Channel[int] = Channel(flow, 1)
    begins = threading.Event()
    stopped: list[str] = []

    def waits() -> None:
        begins.set()
        try:
            if side == "put":
                channel.put(1)
                channel.put(2)
            elif side == "get":
                channel.get()
            else:
                channel.get_unless(lambda: False)
        except FlowStopped:
            stopped.append(side)
            raise

    def fails() -> None:
        assert begins.wait(PATIENCE_S)
        raise BrokenError

    flow.start("waits", waits)
    flow.start("fails", fails)
    with pytest.raises(BrokenError):
        ended(flow)
    assert stopped == [side]
    assert flow.is_failed
    with pytest.raises(FlowStopped):
        channel.put(3)
    with pytest.raises(FlowStopped):
        channel.get()


def test_waiting_ends_when_it_is_over() -> None:
    flow = Flow()
    channel: Channel[int] = Channel(flow, 1)
    over = threading.Event()
    answers: list[int | None] = []
    flow.start("get", lambda: answers.append(channel.get_unless(over.is_set)))
    over.set()
    ended(flow)
    assert answers == [None]


def test_what_nobody_took_is_left() -> None:
    channel: Channel[int] = Channel(Flow(), 4)
    channel.put(1)
    channel.put(2)
    assert channel.left() == [1, 2]
    assert channel.left() == []
