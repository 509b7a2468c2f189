"""Addresses that are looked up beside the caller."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest

from backup_server.services.context import Context
from backup_server.services.lookups import FAILED_KEPT, KEPT, NONE, Addresses, Lookups
from backup_server.services.networks import parse_address
from tests.support.history import Clock

FOUND: Addresses = frozenset({parse_address("192.0.2.9")})
OTHER: Addresses = frozenset({parse_address("192.0.2.10")})
LATER = timedelta(seconds=1)


@pytest.fixture
def lookups(clock: Clock, ctx: Context) -> Iterator[Lookups]:
    made = Lookups(clock, ctx.log)
    yield made
    made.close()


def away() -> Addresses:
    raise OSError("nobody answers")


def test_what_was_found_is_kept_for_a_while(lookups: Lookups, clock: Clock) -> None:
    assert lookups.get("a", lambda: FOUND, wait_s=60) == FOUND
    assert lookups.get("a", lambda: OTHER, wait_s=60) == FOUND
    clock.now += KEPT
    assert lookups.get("a", lambda: OTHER, wait_s=60) == OTHER


def test_what_was_known_holds_while_nobody_answers(lookups: Lookups, clock: Clock) -> None:
    assert lookups.get("a", lambda: FOUND, wait_s=60) == FOUND
    for _ in range(3):
        clock.now += max(KEPT, FAILED_KEPT) + LATER
        assert lookups.get("a", away, wait_s=60) == FOUND, "a rule covers it as before"
    assert lookups.get("a", lambda: OTHER, wait_s=60) == FOUND, "not asked again at once"
    clock.now += FAILED_KEPT
    assert lookups.get("a", lambda: OTHER, wait_s=60) == OTHER


def test_what_was_never_known_is_empty_for_a_while(lookups: Lookups, clock: Clock) -> None:
    assert lookups.get("a", away, wait_s=60) == NONE
    assert lookups.get("a", lambda: FOUND, wait_s=60) == NONE
    clock.now += FAILED_KEPT
    assert lookups.get("a", lambda: FOUND, wait_s=60) == FOUND


def test_one_that_does_not_answer_holds_up_nobody_else(lookups: Lookups) -> None:
    answer = threading.Event()

    def hangs() -> Addresses:
        answer.wait(60)
        return FOUND

    try:
        for number in range(8):
            assert lookups.get(f"host vc-1/{number}", hangs, wait_s=0, of="vc-1") is None
        assert lookups.get("host vc-2/1", lambda: FOUND, wait_s=60, of="vc-2") == FOUND
        assert lookups.get("name s3.example", lambda: OTHER, wait_s=60) == OTHER
        assert not answer.is_set()
    finally:
        answer.set()
