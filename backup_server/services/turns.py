"""One change at a time on one object, and what is asked for meanwhile goes together in the next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class _Asked(Generic[Question, Answer]):
    __slots__ = ("answer", "question")

    def __init__(self, question: Question) -> None:
        self.question = question
        self.answer: Answer | Exception | None = None


class _Lane(Generic[Question, Answer]):
    __slots__ = ("turn", "waiting")

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.waiting: list[_Asked[Question, Answer]] = []


class Turns(Generic[Question, Answer]):
    """Objects are told apart by key. There is no thread: whoever comes to the turn serves all who wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lanes: dict[object, _Lane[Question, Answer]] = {}

    def ask(
        self,
        key: object,
        questions: Sequence[Question],
        serve: Callable[[Sequence[Question]], Sequence[Answer | Exception]],
    ) -> list[Answer | Exception]:
        """What `serve` answers to `questions`, in their order. `serve` is handed these and those of others who
        wait, answers in that order, and is never called twice at a time for one key. What it raises is
        everybody's answer.
        """
        asked = [_Asked[Question, Answer](question) for question in questions]
        lane = self._lane(key)
        with self._lock:
            lane.waiting += asked
        with lane.turn:
            if any(one.answer is None for one in asked):
                self._serve(lane, serve)
        return [one.answer for one in asked if one.answer is not None]

    @contextmanager
    def alone(self, key: object) -> Iterator[None]:
        """Nobody is served meanwhile."""
        with self._lane(key).turn:
            yield

    def _lane(self, key: object) -> _Lane[Question, Answer]:
        with self._lock:
            return self._lanes.setdefault(key, _Lane())

    def _serve(
        self,
        lane: _Lane[Question, Answer],
        serve: Callable[[Sequence[Question]], Sequence[Answer | Exception]],
    ) -> None:
        with self._lock:
            served, lane.waiting = lane.waiting, []
        try:
            answers = serve([one.question for one in served])
        except Exception as error:  # noqa: BLE001 - it is everybody's who waits
            answers = [error] * len(served)
        except BaseException:
            for one in served:
                one.answer = RuntimeError("the change was broken off")
            raise
        for one, answer in zip(served, answers, strict=True):
            one.answer = answer
