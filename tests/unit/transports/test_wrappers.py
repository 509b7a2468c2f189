from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transports.base import Extent, ReadRequest, WriterCapabilities
from transports.errors import (
    PermanentTransportError,
    TransientTransportError,
    TransportUnavailableError,
)
from transports.testing.fakes import MemoryDisk, MemoryReader, MemoryWriter
from transports.testing.faults import FaultyReader, FaultyWriter, Script
from transports.wrappers import (
    CountingReader,
    CountingWriter,
    ReconnectingReader,
    ReconnectingWriter,
)

IMAGE = b"".join((n % 251 + 1).to_bytes(1) * 512 for n in range(200))


class Waits:
    def __init__(self) -> None:
        self.pauses: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.pauses.append(seconds)


def requests(step: int = 512) -> Iterator[ReadRequest]:
    for offset in range(0, len(IMAGE), step):
        yield ReadRequest(offset, memoryview(bytearray(step)))


@given(st.sets(st.integers(1, 250), max_size=40), st.sampled_from([512, 1024, 4096]), st.integers(1, 9))
def test_every_request_is_answered_once_whatever_fails(
    failing: set[int], step: int, in_flight: int
) -> None:
    script = Script(*failing)
    disk = MemoryDisk.of(IMAGE)
    reader = ReconnectingReader(
        lambda: FaultyReader(MemoryReader(disk, requests_in_flight=in_flight), script), 100, Waits()
    )
    drawn: list[ReadRequest] = []

    def lend() -> Iterator[ReadRequest]:
        for request in requests(step):
            drawn.append(request)
            yield request

    answers = list(reader.read_many(lend()))
    assert sorted(map(id, answers)) == sorted(map(id, drawn))
    assert all(bytes(a.buffer) == IMAGE[a.offset : a.offset + step] for a in answers)
    assert reader.reconnects <= len(failing)


def test_only_what_was_not_answered_is_read_again() -> None:
    script = Script(6)
    disk = MemoryDisk.of(IMAGE)
    reader = ReconnectingReader(
        lambda: FaultyReader(MemoryReader(disk, requests_in_flight=2), script), 2, Waits()
    )
    answered = [answer.offset for answer in reader.read_many(requests())]
    assert len(answered) == 200
    assert len(disk.reads) == 201
    assert script.unused == set()


def test_pauses_grow_and_progress_forgets_failures() -> None:
    script = Script(3, 4, 5, 8)
    waits = Waits()
    disk = MemoryDisk.of(IMAGE)
    reader = ReconnectingReader(lambda: FaultyReader(MemoryReader(disk), script), 4, waits)
    assert len(list(reader.read_many(requests()))) == 200
    assert waits.pauses == [1.0, 2.0, 4.0, 1.0]


def test_the_last_failure_in_a_row_is_raised() -> None:
    script = Script(*range(2, 100))
    waits = Waits()
    reader = ReconnectingReader(
        lambda: FaultyReader(MemoryReader(MemoryDisk.of(IMAGE)), script), 3, waits
    )
    buffer = memoryview(bytearray(512))
    reader.read_into(0, buffer)
    with pytest.raises(TransientTransportError, match="on purpose"):
        reader.read_into(512, buffer)
    assert waits.pauses == [1.0, 2.0]


def test_other_errors_pass_at_once() -> None:
    script = Script(2, error=lambda: PermanentTransportError("no rights"))
    waits = Waits()
    reader = ReconnectingReader(
        lambda: FaultyReader(MemoryReader(MemoryDisk.of(IMAGE)), script), 3, waits
    )
    with pytest.raises(PermanentTransportError):
        list(reader.read_many(requests()))
    assert waits.pauses == []


def test_the_first_opening_is_not_repeated_but_later_ones_are() -> None:
    def never() -> MemoryReader:
        raise TransportUnavailableError("no way there")

    with pytest.raises(TransportUnavailableError):
        ReconnectingReader(never, 5, Waits())

    turns = iter([None, TransportUnavailableError("rebooting"), None])

    def sometimes() -> FaultyReader:
        error = next(turns)
        if error:
            raise error
        return FaultyReader(MemoryReader(MemoryDisk.of(IMAGE)), script)

    script = Script(1)
    reader = ReconnectingReader(sometimes, 3, Waits())
    buffer = bytearray(512)
    reader.read_into(0, memoryview(buffer))
    assert bytes(buffer) == IMAGE[:512]


def test_a_mover_that_gives_up_is_not_a_lost_connection() -> None:
    waits = Waits()
    reader = ReconnectingReader(lambda: MemoryReader(MemoryDisk.of(IMAGE)), 3, waits)

    def lend() -> Iterator[ReadRequest]:
        yield from list(requests())[:5]
        raise TransientTransportError("the mover's own trouble")

    with pytest.raises(TransientTransportError, match="own trouble"):
        list(reader.read_many(lend()))
    assert waits.pauses == []


def test_a_wait_may_end_the_work() -> None:
    class CancelledError(Exception):
        pass

    def wait(_: float) -> None:
        raise CancelledError

    reader = ReconnectingReader(
        lambda: FaultyReader(MemoryReader(MemoryDisk.of(IMAGE)), Script(1)), 3, wait
    )
    with pytest.raises(CancelledError):
        reader.read_into(0, memoryview(bytearray(512)))


def test_another_disk_behind_the_same_name_is_not_read() -> None:
    sizes = iter([len(IMAGE), len(IMAGE) * 2, len(IMAGE) * 2])
    reader = ReconnectingReader(
        lambda: FaultyReader(MemoryReader(MemoryDisk(bytearray(next(sizes)))), Script(1)), 2, Waits()
    )
    with pytest.raises(TransientTransportError):
        reader.read_into(0, memoryview(bytearray(512)))


def test_allocation_is_asked_again_and_joined_over_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transports.wrappers._ALLOCATION_WINDOW_BYTES", 8192)
    known = (
        Extent(offset=0, length=512),
        Extent(offset=4096, length=8192),
        Extent(offset=20480, length=512),
    )
    disk = MemoryDisk(bytearray(IMAGE), allocated=known)
    script = Script(2, 4)
    reader = ReconnectingReader(lambda: FaultyReader(MemoryReader(disk), script), 3, Waits())
    assert tuple(reader.allocated_extents(0, len(IMAGE))) == known
    assert script.unused == set()


@given(st.sets(st.integers(1, 60), max_size=20))
def test_writes_are_repeated(failing: set[int]) -> None:
    disk = MemoryDisk(bytearray(len(IMAGE)))
    script = Script(*failing)
    writer = ReconnectingWriter(lambda: FaultyWriter(MemoryWriter(disk), script), 100, Waits())
    for offset in range(0, len(IMAGE), 4096):
        writer.write_from(offset, memoryview(IMAGE)[offset : offset + 4096])
    writer.flush()
    writer.close()
    assert bytes(disk.content) == IMAGE


def test_counts() -> None:
    reader = CountingReader(MemoryReader(MemoryDisk.of(IMAGE)))
    reader.read_into(0, memoryview(bytearray(1024)))
    assert len(list(reader.read_many(requests()))) == 200
    assert (reader.count.bytes, reader.count.requests) == (1024 + len(IMAGE), 201)
    assert reader.count.busy_s > 0
    writer = CountingWriter(MemoryWriter(MemoryDisk.of(IMAGE)))
    writer.write_from(0, memoryview(bytes(1024)))
    writer.flush()
    assert (writer.count.bytes, writer.count.requests) == (1024, 1)


def test_waiting_for_the_movers_buffers_is_not_the_sources_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0

    def clock() -> float:
        return now

    monkeypatch.setattr("transports.wrappers.perf_counter", clock)

    class Slow(MemoryReader):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            nonlocal now
            now += 1.0
            super().read_into(offset, buffer)

    def lend() -> Iterator[ReadRequest]:
        nonlocal now
        for request in list(requests())[:10]:
            now += 100.0
            yield request

    reader = CountingReader(Slow(MemoryDisk.of(IMAGE)))
    for _ in reader.read_many(lend()):
        now += 1000.0
    assert reader.count.busy_s == pytest.approx(10.0)


class CachingWriter(MemoryWriter):
    """Keeps what it is given to itself until a flush; one that `fails` has lost it."""

    def __init__(self, disk: MemoryDisk, *, fails: bool) -> None:
        super().__init__(disk)
        self._fails = fails
        self._kept: list[tuple[int, bytes]] = []

    @property
    def capabilities(self) -> WriterCapabilities:
        return replace(super().capabilities, answered_is_kept=False)

    def write_from(self, offset: int, buffer: memoryview) -> None:
        self._kept.append((offset, bytes(buffer)))

    def flush(self) -> None:
        if self._fails:
            raise TransientTransportError("the device is gone")
        for offset, content in self._kept:
            super().write_from(offset, memoryview(content))
        super().flush()


def test_a_flush_of_another_writer_is_not_taken_for_the_lost_one() -> None:
    disk = MemoryDisk(bytearray(len(IMAGE)))
    fails = iter([True, False])
    writer = ReconnectingWriter(lambda: CachingWriter(disk, fails=next(fails)), 100, Waits())
    writer.write_from(0, memoryview(IMAGE))
    with pytest.raises(TransientTransportError, match="written again from its beginning"):
        writer.flush()
    assert not writer.capabilities.answered_is_kept


def test_what_is_cached_is_flushed_before_the_next_writer_goes_on() -> None:
    disk = MemoryDisk(bytearray(len(IMAGE)))
    script = Script(2)
    writer = ReconnectingWriter(
        lambda: FaultyWriter(CachingWriter(disk, fails=False), script), 100, Waits()
    )
    writer.write_from(0, memoryview(IMAGE)[:4096])
    writer.write_from(4096, memoryview(IMAGE)[4096:])
    writer.flush()
    assert bytes(disk.content) == IMAGE
