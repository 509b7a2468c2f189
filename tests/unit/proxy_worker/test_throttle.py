"""Token buckets by a clock of the test's own: what waits moves the clock on, so no test takes time."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.testing.storage import MemoryStorage
from proxy_worker.contracts.messages import RateLimit
from proxy_worker.throttle import (
    BURST_S,
    Side,
    Throttle,
    ThrottledReader,
    ThrottledStorage,
    throttled_writer,
)
from tests.support.waiting import Clock
from transports.base import ReadRequest
from transports.testing.fakes import MemoryDisk, MemoryReader, MemoryWriter

KIB = 1 << 10
MIB = 1 << 20


@pytest.fixture
def clock() -> Clock:
    return Clock()


def limit(bytes_per_s: int, *, source: bool = True, target: bool = True) -> RateLimit:
    return RateLimit(bytes_per_s=bytes_per_s, source=source, target=target)


def throttle(clock: Clock, rate: RateLimit | None, cancel: threading.Event | None = None) -> Throttle:
    event = cancel or threading.Event()
    return Throttle(rate, cancelled=event.is_set, clock=clock, changed=clock)


def test_nothing_waits_without_a_limit(clock: Clock) -> None:
    free = throttle(clock, None)
    for _ in range(100):
        free.pass_(Side.SOURCE, 100 * MIB)
    assert (clock.now_s, free.waited_s) == (1000.0, 0.0)


def test_over_time_what_passes_is_the_rate(clock: Clock) -> None:
    held = throttle(clock, limit(MIB))
    for _ in range(100):
        held.pass_(Side.SOURCE, 256 * KIB)
    # the last one is owed for
    assert clock.now_s - 1000.0 == pytest.approx(99 * 0.25, abs=0.01)
    assert held.waited_s == pytest.approx(clock.now_s - 1000.0)


def test_both_sides_share_one_bucket_and_a_side_that_is_not_counted_passes(clock: Clock) -> None:
    both = throttle(clock, limit(MIB))
    both.pass_(Side.SOURCE, MIB)
    both.pass_(Side.TARGET, MIB)
    assert clock.now_s - 1000.0 == pytest.approx(1.0, abs=0.01)
    one = throttle(clock, limit(MIB, source=False))
    one.pass_(Side.TARGET, MIB)
    before_s = clock.now_s
    one.pass_(Side.SOURCE, 100 * MIB)
    assert clock.now_s == before_s


def test_time_that_nothing_was_moved_in_is_not_saved_up(clock: Clock) -> None:
    held = throttle(clock, limit(MIB))
    clock.now_s += 3600
    began_s = clock.now_s
    for _ in range(5):
        held.pass_(Side.SOURCE, MIB)
    assert clock.now_s - began_s == pytest.approx(4 - BURST_S, abs=0.01)


def test_a_new_rate_reaches_those_that_wait(clock: Clock) -> None:
    held = throttle(clock, limit(KIB))
    held.pass_(Side.SOURCE, MIB)  # more than a quarter of an hour's worth
    clock.at.append((1003.0, lambda: held.set(limit(MIB))))
    held.pass_(Side.SOURCE, 1)
    assert 1003.0 <= clock.now_s <= 1005.0
    held.set(limit(KIB))
    held.pass_(Side.SOURCE, MIB)
    clock.at.append((clock.now_s + 2, lambda: held.set(None)))
    before_s = clock.now_s
    held.pass_(Side.SOURCE, MIB)
    assert clock.now_s - before_s <= 3.0


def test_a_cancelled_one_waits_no_longer(clock: Clock) -> None:
    cancel = threading.Event()
    held = throttle(clock, limit(1), cancel)
    held.pass_(Side.SOURCE, MIB)
    clock.at.append((1002.0, cancel.set))
    held.pass_(Side.SOURCE, MIB)
    assert clock.now_s < 1004


@given(
    st.lists(st.tuples(st.integers(1, 4 * MIB), st.floats(0, 2)), min_size=1, max_size=60),
    st.integers(64 * KIB, 64 * MIB),
)
def test_no_span_of_time_holds_more_than_its_share_and_one_piece(
    steps: list[tuple[int, float]], rate: int
) -> None:
    clock = Clock()
    held = throttle(clock, limit(rate))
    passed: list[tuple[float, int]] = []
    for size, pause_s in steps:
        clock.now_s += pause_s
        held.pass_(Side.SOURCE, size)
        passed.append((clock.now_s, size))
    for first, (began_s, _) in enumerate(passed):
        total = 0
        for at_s, size in passed[first:]:
            # what passed before this one, within the span: the last piece is owed for afterwards
            assert total <= rate * (at_s - began_s + BURST_S) + passed[first][1] + 1
            total += size


def in_steps(disk: MemoryDisk, step: int) -> Iterator[ReadRequest]:
    for offset in range(0, len(disk.content), step):
        yield ReadRequest(offset, memoryview(bytearray(step)))


def test_a_reader_gives_all_and_has_nothing_under_way_while_it_waits(clock: Clock) -> None:
    disk = MemoryDisk.of(bytes(range(256)) * (16 * KIB))
    inner = MemoryReader(disk, requests_in_flight=8)
    under_way: list[int] = []

    class Watching(MemoryReader):
        def read_many(self, requests: Iterable[ReadRequest]) -> Iterator[ReadRequest]:
            drawn = 0

            def counted() -> Iterator[ReadRequest]:
                nonlocal drawn
                for request in requests:
                    drawn += 1
                    yield request

            for answer in inner.read_many(counted()):
                drawn -= 1
                yield answer
            under_way.append(drawn)

    reader = ThrottledReader(Watching(disk), throttle(clock, limit(MIB)))
    found = bytearray(len(disk.content))
    for answer in reader.read_many(in_steps(disk, 64 * KIB)):
        found[answer.offset : answer.offset + len(answer.buffer)] = answer.buffer
    assert found == disk.content
    assert set(under_way) == {0}
    assert clock.now_s - 1000.0 == pytest.approx(4.0, abs=0.3)


def test_a_reader_that_waits_long_keeps_its_host_awake(clock: Clock) -> None:
    disk = MemoryDisk.of(bytes(4 * KIB))
    inner = MemoryReader(disk)
    reader = ThrottledReader(inner, throttle(clock, limit(40)))
    assert len(list(reader.read_many(in_steps(disk, 2 * KIB)))) == 2
    sectors = [length for _, length in disk.reads if length == 512]
    assert len(sectors) == 1  # 2 KiB at 40 bytes a second: 51 s


def test_a_cancelled_reader_ends_as_if_there_were_no_more_buffers(clock: Clock) -> None:
    cancel = threading.Event()
    disk = MemoryDisk.of(bytes(64 * KIB))
    reader = ThrottledReader(MemoryReader(disk), throttle(clock, limit(KIB), cancel))
    clock.at.append((1010.0, cancel.set))
    answered = list(reader.read_many(in_steps(disk, 8 * KIB)))
    assert 1 <= len(answered) < 8


def test_a_writer_and_a_storage_are_held(clock: Clock) -> None:
    held = throttle(clock, limit(MIB))
    disk = MemoryDisk.of(bytes(2 * MIB))
    writer = throttled_writer(MemoryWriter(disk), held)
    writer.write_from(0, memoryview(bytearray(MIB)))
    writer.write_from(MIB, memoryview(bytearray(MIB)))
    assert clock.now_s - 1000.0 == pytest.approx(1.0, abs=0.01)
    storage = ThrottledStorage(MemoryStorage(), held, Side.TARGET)
    storage.put("a", bytes(MIB))
    assert clock.now_s - 1000.0 == pytest.approx(2.0, abs=0.01)
    assert len(storage.read("a")) == MIB
    assert clock.now_s - 1000.0 == pytest.approx(3.0, abs=0.01)
    assert storage.read_range("a", 0, KIB) == bytes(KIB)
    assert clock.now_s - 1000.0 == pytest.approx(4.0, abs=0.01)
    entry = storage.create("b")
    entry.write([bytes(MIB), bytes(MIB)])
    entry.commit()
    assert storage.size_bytes("b") == 2 * MIB
    assert clock.now_s - 1000.0 == pytest.approx(4.0, abs=0.01)
    storage.replace("b", b"x")
    assert clock.now_s - 1000.0 == pytest.approx(6.0, abs=0.01)


def test_a_writer_that_wants_to_know_early_is_still_told(clock: Clock) -> None:
    told: list[tuple[int, int]] = []

    class Expects(MemoryWriter):
        def expect(self, offset: int, length: int) -> None:
            told.append((offset, length))

    writer = throttled_writer(Expects(MemoryDisk.of(bytes(KIB))), throttle(clock, None))
    writer.expect(0, KIB)  # type: ignore[attr-defined]
    assert told == [(0, KIB)]
    assert not hasattr(
        throttled_writer(MemoryWriter(MemoryDisk.of(b"")), throttle(clock, None)), "expect"
    )
