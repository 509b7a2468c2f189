"""Repeating what a storage did not answer: how long, what is safe to repeat, and when to give up."""

from __future__ import annotations

import threading

import pytest

from pipeline.errors import (
    CancelledError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoragePermissionError,
    StorageUnavailableError,
)
from pipeline.storage.retry import LONGEST_PAUSE_S, PATIENCE_S, RetryingStorage, wait_for
from pipeline.testing.storage import Fault, MemoryStorage, Script, ScriptedStorage, at_calls


class Rig:
    """A wrapper over a scripted storage; pauses are noted instead of waited for."""

    def __init__(self, script: Script) -> None:
        self.memory = MemoryStorage()
        self.scripted = ScriptedStorage(self.memory, script)
        self.pauses: list[float] = []
        self.now_s = 0.0
        self.storage = RetryingStorage(self.scripted, wait=self.wait, clock=lambda: self.now_s)

    def wait(self, pause_s: float) -> None:
        self.pauses.append(pause_s)
        self.now_s += pause_s


def always(fault: Fault) -> Script:
    return lambda _number, _what: fault


@pytest.mark.parametrize("fault", [Fault.LOST, Fault.ANSWER_LOST])
def test_a_put_is_repeated_and_counts_once(fault: Fault) -> None:
    rig = Rig(at_calls({1: fault, 2: fault}))
    rig.storage.put("packs/one", b"content")
    assert rig.memory.read("packs/one") == b"content"
    assert len(rig.pauses) == (2 if fault is Fault.LOST else 1)


def test_a_put_whose_answer_was_lost_does_not_take_over_what_somebody_else_wrote() -> None:
    rig = Rig(at_calls({1: Fault.LOST}))
    rig.memory.put("points/one", b"theirs")
    with pytest.raises(ObjectExistsError):
        rig.storage.put("points/one", b"mine!!")
    assert rig.memory.read("points/one") == b"theirs"


def test_a_name_that_was_taken_before_is_refused_though_the_bytes_are_equal() -> None:
    rig = Rig(at_calls({}))
    rig.memory.put("points/one", b"same")
    with pytest.raises(ObjectExistsError):
        rig.storage.put("points/one", b"same")


@pytest.mark.parametrize("call", range(1, 8))
@pytest.mark.parametrize("fault", [Fault.LOST, Fault.ANSWER_LOST])
def test_a_writer_that_breaks_anywhere_is_written_again(call: int, fault: Fault) -> None:
    rig = Rig(at_calls({call: fault}))
    writer = rig.storage.create("packs/one")
    buffer = bytearray(b"first ")
    writer.write([buffer])
    buffer[:] = b"xxxxxx"  # the caller may use it again
    writer.write([b"second ", memoryview(b"third")])
    writer.commit()
    writer.abort()
    assert rig.memory.objects == {"packs/one": b"first second third"}


def test_a_writer_that_was_aborted_leaves_nothing_to_repeat() -> None:
    rig = Rig(at_calls({2: Fault.LOST}))
    writer = rig.storage.create("packs/one")
    writer.write([b"first"])
    writer.abort()
    writer.abort()
    assert rig.memory.objects == {}


def test_what_is_too_large_to_be_kept_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.retry.MAX_KEPT_BYTES", 10)
    rig = Rig(at_calls({3: Fault.LOST}))
    writer = rig.storage.create("packs/one")
    writer.write([b"12345678901"])
    with pytest.raises(StorageUnavailableError):
        writer.commit()
    writer.abort()
    assert rig.memory.objects == {}


def test_a_range_that_comes_short_is_asked_for_again() -> None:
    rig = Rig(at_calls({2: Fault.SHORT}))
    rig.storage.put("packs/one", b"0123456789")
    assert rig.storage.read_range("packs/one", 2, 5) == b"23456"
    assert rig.scripted.fired[Fault.SHORT] == 1


def test_a_listing_that_breaks_off_goes_on_where_it_was() -> None:
    def script(number: int, what: str) -> Fault | None:
        return Fault.ANSWER_LOST if what.startswith("list") and number < 14 else None

    rig = Rig(script)
    names = [f"packs/{number:02}" for number in range(10)]
    for name in names:
        rig.memory.put(name, b"")
    assert [entry.name for entry in rig.storage.list("packs/")] == names
    assert rig.scripted.fired[Fault.ANSWER_LOST] > 1


def test_patience_ends_with_the_drivers_error() -> None:
    rig = Rig(always(Fault.LOST))
    with pytest.raises(StorageUnavailableError, match="did not answer"):
        rig.storage.read("packs/one")
    assert PATIENCE_S <= sum(rig.pauses) <= PATIENCE_S + LONGEST_PAUSE_S
    assert max(rig.pauses) <= LONGEST_PAUSE_S
    assert rig.pauses[0] < 1


def test_patience_ends_also_when_each_attempt_takes_long() -> None:
    rig = Rig(always(Fault.LOST))

    def script(_number: int, _what: str) -> Fault:
        rig.now_s += 60.0
        return Fault.LOST

    rig.scripted.script = script
    with pytest.raises(StorageUnavailableError):
        rig.storage.space()
    assert rig.scripted.calls <= 4


@pytest.mark.parametrize("fault", [Fault.DENIED])
def test_an_answer_is_not_repeated(fault: Fault) -> None:
    rig = Rig(always(fault))
    with pytest.raises(StoragePermissionError):
        rig.storage.delete("packs/one")
    assert rig.scripted.calls == 1
    assert rig.pauses == []


def test_what_is_missing_is_not_waited_for() -> None:
    rig = Rig(at_calls({}))
    with pytest.raises(ObjectNotFoundError):
        rig.storage.read("packs/none")
    assert rig.pauses == []


def test_cancel_ends_a_pause() -> None:
    cancel = threading.Event()
    cancel.set()
    storage = RetryingStorage(
        ScriptedStorage(MemoryStorage(), always(Fault.LOST)), wait=wait_for(cancel, "the storage")
    )
    with pytest.raises(CancelledError, match="the storage"):
        storage.read("packs/one")
