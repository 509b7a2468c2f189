"""No write is handed on after the time until which the lease surely lasts."""

from __future__ import annotations

import threading

import pytest

from transports.base import TransportMode, WriterCapabilities
from transports.fence import Fence, FencedWriter


class EndedError(Exception):
    pass


class Disk:
    size_bytes = 1 << 20
    capabilities = WriterCapabilities(
        mode=TransportMode.DIRECT_NFS, max_request_bytes=1 << 20, reads_as_zero_when_new=True
    )

    def __init__(self) -> None:
        self.done: list[str] = []

    def write_from(self, offset: int, buffer: memoryview) -> None:
        self.done.append(f"write {offset} {len(buffer)}")

    def flush(self) -> None:
        self.done.append("flush")

    def close(self) -> None:
        self.done.append("close")


class Stage:
    def __init__(self) -> None:
        self.now_s = 100.0
        self.waiting = threading.Event()
        self.ended = False
        self.fence = Fence(lambda: self.now_s, self._pause)
        self.disk = Disk()
        self.writer = FencedWriter(self.disk, self.fence)

    def _pause(self, pause_s: float) -> None:
        self.waiting.set()
        if self.ended:
            raise EndedError


def test_it_is_closed_until_a_lease_is_told_and_after_its_end() -> None:
    stage = Stage()
    block = memoryview(bytes(512))
    writing = threading.Thread(target=stage.writer.write_from, args=(0, block))
    writing.start()
    assert stage.waiting.wait(60)
    assert stage.disk.done == []
    stage.fence.open_until(130.0)
    writing.join(60)
    assert stage.disk.done == ["write 0 512"]

    stage.now_s = 130.0  # the machine slept, or nobody answered
    stage.waiting.clear()
    flushing = threading.Thread(target=stage.writer.flush)
    flushing.start()
    assert stage.waiting.wait(60)
    stage.fence.open_until(120.0)  # an answer to an earlier heartbeat
    assert stage.disk.done == ["write 0 512"]
    stage.fence.open_until(140.0)
    flushing.join(60)
    assert stage.disk.done == ["write 0 512", "flush"]


def test_who_is_ended_while_it_is_closed_writes_nothing_more() -> None:
    stage = Stage()
    stage.ended = True
    with pytest.raises(EndedError):
        stage.writer.write_from(0, memoryview(bytes(512)))
    stage.writer.close()
    assert stage.disk.done == ["close"]


def test_it_looks_like_the_disk_behind_it() -> None:
    stage = Stage()
    assert stage.writer.size_bytes == 1 << 20
    assert stage.writer.capabilities is stage.disk.capabilities
