"""A suite that accepts everything proves nothing: each of these readers and writers must be refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator

import pytest

from transports.base import DiskReader, DiskWriter, Extent, ReadRequest
from transports.testing.contract import DiskReaderContract, DiskWriterContract
from transports.testing.fakes import MemoryDisk, MemoryReader, MemoryWriter

IMAGE = b"".join((n % 251 + 1).to_bytes(1) * 512 for n in range(2048)) + bytes(1 << 20)
ALLOCATED = (Extent(offset=0, length=1 << 20),)


class FillsHalf(MemoryReader):
    def read_into(self, offset: int, buffer: memoryview) -> None:
        super().read_into(offset, buffer[: len(buffer) // 1024 * 512 or 512])


class FillsWhatThereIs(MemoryReader):
    def read_into(self, offset: int, buffer: memoryview) -> None:
        part = IMAGE[offset : offset + len(buffer)]
        buffer[: len(part)] = part


class KeepsTheBuffer(MemoryReader):
    kept: memoryview | None = None

    def read_into(self, offset: int, buffer: memoryview) -> None:
        super().read_into(offset, buffer)
        if self.kept is not None:
            self.kept[:1] = b"\0"
        self.kept = buffer


class AnswersTwice(MemoryReader):
    def read_many(self, requests: Iterable[ReadRequest]) -> Iterator[ReadRequest]:
        for answer in super().read_many(requests):
            yield answer
            yield answer


class LosesTheLast(MemoryReader):
    def read_many(self, requests: Iterable[ReadRequest]) -> Iterator[ReadRequest]:
        answers = list(super().read_many(requests))
        yield from answers[:-1]


class DrawsAhead(MemoryReader):
    def read_many(self, requests: Iterable[ReadRequest]) -> Iterator[ReadRequest]:
        yield from super().read_many(list(requests))


class YieldsBeforeItIsFull(MemoryReader):
    def read_many(self, requests: Iterable[ReadRequest]) -> Iterator[ReadRequest]:
        for request in requests:
            yield request
            self.read_into(request.offset, request.buffer)


class YieldsCopies(MemoryReader):
    def read_many(self, requests: Iterable[ReadRequest]) -> Iterator[ReadRequest]:
        for answer in super().read_many(requests):
            yield ReadRequest(answer.offset, memoryview(bytearray(answer.buffer)))


class RepeatsAnExtent(MemoryReader):
    def allocated_extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset=offset, length=length)
        yield Extent(offset=offset, length=length)


class ForgetsAnExtent(MemoryReader):
    def allocated_extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset=offset + 512, length=512)


class LeavesTheRange(MemoryReader):
    def allocated_extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset=0, length=self.size_bytes)


class ReadsAfterClosing(MemoryReader):
    def close(self) -> None:
        return


class ClosesOnce(MemoryReader):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise OSError("bad file descriptor")
        self.closed = True
        super().close()


class WritesHalf(MemoryWriter):
    def write_from(self, offset: int, buffer: memoryview) -> None:
        super().write_from(offset, buffer[: len(buffer) // 1024 * 512 or 512])


class WritesAtZero(MemoryWriter):
    def write_from(self, offset: int, buffer: memoryview) -> None:
        self._disk.check_range(offset, len(buffer))
        super().write_from(0, buffer)


class WritesLater(MemoryWriter):
    """Keeps the buffer until flush."""

    def __init__(self, disk: MemoryDisk) -> None:
        super().__init__(disk)
        self.later: list[tuple[int, memoryview]] = []

    def write_from(self, offset: int, buffer: memoryview) -> None:
        self._disk.check_range(offset, len(buffer))
        self.later.append((offset, buffer))

    def flush(self) -> None:
        for offset, buffer in self.later:
            super().write_from(offset, buffer)


class ForgetsToWrite(MemoryWriter):
    def write_from(self, offset: int, buffer: memoryview) -> None:
        self._disk.check_range(offset, len(buffer))


class WritesPastTheEnd(MemoryWriter):
    def write_from(self, offset: int, buffer: memoryview) -> None:
        self._disk.content[offset : offset + len(buffer)] = buffer


def _failures(suite: type, arguments: Callable[[], dict[str, object]]) -> list[str]:
    """Names of the suite's tests that refuse what they are given."""
    refused = []
    for name, test in inspect.getmembers(suite, inspect.isfunction):
        if not name.startswith("test_"):
            continue
        for case in _cases(test):
            given = arguments() | case
            wanted = set(inspect.signature(test).parameters) - {"self"}
            try:
                test(suite(), **{key: given[key] for key in wanted})
            except (AssertionError, pytest.fail.Exception, ValueError, OSError, StopIteration):
                refused.append(name)
                break
    return refused


def _cases(test: Callable[..., object]) -> list[dict[str, object]]:
    for mark in getattr(test, "pytestmark", []):
        names, values = mark.args
        if isinstance(names, str):
            return [{names: value} for value in values]
        return [dict(zip(names, value, strict=True)) for value in values]
    return [{}]


def _reader_failures(kind: Callable[[MemoryDisk], DiskReader]) -> list[str]:
    return _failures(
        DiskReaderContract,
        lambda: {
            "image": IMAGE,
            "reader": kind(MemoryDisk(bytearray(IMAGE), allocated=ALLOCATED)),
        },
    )


def _writer_failures(kind: Callable[[MemoryDisk], DiskWriter]) -> list[str]:
    def arguments() -> dict[str, object]:
        disk = MemoryDisk(bytearray(2 << 20))
        return {"writer": kind(disk), "size_bytes": 2 << 20, "content": lambda: bytes(disk.content)}

    return _failures(DiskWriterContract, arguments)


def test_a_sound_reader_and_writer_pass() -> None:
    assert _reader_failures(MemoryReader) == []
    assert _writer_failures(MemoryWriter) == []


@pytest.mark.parametrize(
    ("broken", "caught_by"),
    [
        (FillsHalf, "test_reads_what_is_there"),
        (FillsWhatThereIs, "test_read_past_the_end_is_refused"),
        (KeepsTheBuffer, "test_does_not_keep_the_buffer"),
        (AnswersTwice, "test_read_many_answers_each_request_once"),
        (LosesTheLast, "test_read_many_answers_each_request_once"),
        (DrawsAhead, "test_read_many_draws_no_further_than_its_room"),
        (YieldsBeforeItIsFull, "test_read_many_answers_each_request_once"),
        (YieldsCopies, "test_read_many_yields_the_request_that_it_drew"),
        (RepeatsAnExtent, "test_allocated_extents_ascend_and_do_not_touch"),
        (ForgetsAnExtent, "test_what_is_not_allocated_is_zero"),
        (LeavesTheRange, "test_allocated_extents_stay_in_the_range"),
        (ReadsAfterClosing, "test_a_closed_reader_reads_nothing"),
        (ClosesOnce, "test_close_may_be_called_twice"),
    ],
)
def test_broken_readers_are_caught(broken: type[MemoryReader], caught_by: str) -> None:
    assert caught_by in _reader_failures(broken)


@pytest.mark.parametrize(
    ("broken", "caught_by"),
    [
        (WritesHalf, "test_writes_there_and_nowhere_else"),
        (WritesAtZero, "test_writes_there_and_nowhere_else"),
        (WritesLater, "test_does_not_keep_the_buffer"),
        (ForgetsToWrite, "test_a_later_write_wins"),
        (WritesPastTheEnd, "test_write_past_the_end_is_refused"),
    ],
)
def test_broken_writers_are_caught(broken: type[MemoryWriter], caught_by: str) -> None:
    assert caught_by in _writer_failures(broken)
