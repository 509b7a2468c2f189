"""Readers and writers that fail on purpose, at a place that the test chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from transports.base import (
    DiskReader,
    DiskWriter,
    Extent,
    ReaderCapabilities,
    ReadRequest,
    WriterCapabilities,
)
from transports.errors import TransientTransportError

MakeError = Callable[[], Exception]


def cut() -> Exception:
    return TransientTransportError("the connection was cut on purpose")


class Script:
    """Fails at the given turns (counted from 1 over all readers that share it)."""

    def __init__(self, *failing_turns: int, error: MakeError = cut) -> None:
        self._failing = set(failing_turns)
        self._error = error
        self._turn = 0

    @property
    def unused(self) -> set[int]:
        """Turns whose failure never happened: a test ends with none."""
        return {turn for turn in self._failing if turn > self._turn}

    def step(self) -> None:
        self._turn += 1
        if self._turn in self._failing:
            raise self._error()


class FaultyReader:
    """A DiskReader whose answers fail as a Script says, one turn for each answer."""

    def __init__(self, reader: DiskReader, script: Script) -> None:
        self._reader = reader
        self._script = script

    @property
    def size_bytes(self) -> int:
        return self._reader.size_bytes

    @property
    def capabilities(self) -> ReaderCapabilities:
        return self._reader.capabilities

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._script.step()
        self._reader.read_into(offset, buffer)

    def read_many(self, requests: Iterable[ReadRequest]) -> Iterator[ReadRequest]:
        for answer in self._reader.read_many(requests):
            self._script.step()
            yield answer

    def allocated_extents(self, offset: int, length: int) -> Iterator[Extent]:
        for extent in self._reader.allocated_extents(offset, length):
            self._script.step()
            yield extent

    def close(self) -> None:
        self._reader.close()


class FaultyWriter:
    """A DiskWriter whose writes fail as a Script says; a failing write may have been done."""

    def __init__(self, writer: DiskWriter, script: Script) -> None:
        self._writer = writer
        self._script = script

    @property
    def size_bytes(self) -> int:
        return self._writer.size_bytes

    @property
    def capabilities(self) -> WriterCapabilities:
        return self._writer.capabilities

    def write_from(self, offset: int, buffer: memoryview) -> None:
        self._writer.write_from(offset, buffer)
        self._script.step()

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
