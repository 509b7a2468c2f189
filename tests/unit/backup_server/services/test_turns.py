"""Questions to one object are served one call at a time, and together when they wait."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from backup_server.services.turns import Turns


def test_each_question_has_its_own_answer_or_error() -> None:
    turns: Turns[int, str] = Turns()

    def serve(questions: Sequence[int]) -> list[str | Exception]:
        return [ValueError("odd") if n % 2 else str(n) for n in questions]

    first, second = turns.ask("vm", [1, 2], serve)
    assert isinstance(first, ValueError)
    assert second == "2"
    assert turns.ask("vm", [], serve) == []


def test_an_error_is_everybodys() -> None:
    turns: Turns[int, str] = Turns()

    def serve(_: Sequence[int]) -> list[str | Exception]:
        raise ValueError("no")

    assert [str(answer) for answer in turns.ask("vm", [1, 2], serve)] == ["no", "no"]


def test_a_death_is_not_swallowed() -> None:
    turns: Turns[int, str] = Turns()

    def serve(_: Sequence[int]) -> list[str | Exception]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        turns.ask("vm", [1], serve)
    assert turns.ask("vm", [2], lambda questions: ["ok" for _ in questions]) == ["ok"]


def test_calls_do_not_overlap_and_gather_who_waits() -> None:
    turns: Turns[int, int] = Turns()
    inside = threading.Lock()
    calls: list[int] = []

    def serve(questions: Sequence[int]) -> list[int | Exception]:
        assert inside.acquire(blocking=False), "two calls at a time"
        calls.append(len(questions))
        inside.release()
        return [n * 2 for n in questions]

    with ThreadPoolExecutor(8) as pool:
        with turns.alone("vm"):
            asked = [pool.submit(turns.ask, "vm", [n, n + 100], serve) for n in range(8)]
            while len(turns._lane("vm").waiting) < 16:
                threading.Event().wait(0.001)
        assert [one.result() for one in asked] == [[n * 2, (n + 100) * 2] for n in range(8)]
    assert calls == [16]


def test_other_objects_do_not_wait() -> None:
    turns: Turns[int, int] = Turns()
    with turns.alone("vm"):
        assert turns.ask("another", [1], list) == [1]
