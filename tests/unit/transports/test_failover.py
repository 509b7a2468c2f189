from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transports.base import (
    DiskReader,
    DiskWriter,
    Extent,
    ReaderCapabilities,
    ReadRequest,
    TransportMode,
    WriterCapabilities,
)
from transports.errors import (
    ObjectGoneError,
    PeerIdentityError,
    PermanentTransportError,
    TransientTransportError,
    TransportUnavailableError,
)
from transports.failover import FailoverReader, FailoverWriter, Way
from transports.testing.fakes import MemoryDisk, MemoryReader, MemoryWriter
from transports.testing.faults import FaultyReader, FaultyWriter, Script
from transports.wrappers import ReconnectingReader, ReconnectingWriter

BLOCK = 512
BLOCKS = 120
IMAGE = b"".join((n % 251 + 1).to_bytes(1) * BLOCK for n in range(BLOCKS))
MODES = (TransportMode.DIRECT_SAN, TransportMode.HOTADD, TransportMode.NBDSSL)


class Left(list[tuple[TransportMode, str]]):
    def __call__(self, mode: TransportMode, reason: str) -> None:
        self.append((mode, reason))

    @property
    def modes(self) -> list[TransportMode]:
        return [mode for mode, _ in self]


def unwaited(_: float) -> None:
    pass


def requests(step: int = BLOCK) -> Iterator[ReadRequest]:
    for offset in range(0, len(IMAGE), step):
        yield ReadRequest(offset, memoryview(bytearray(min(step, len(IMAGE) - offset))))


def broken(error: Exception) -> Callable[[], DiskReader]:
    def open_it() -> DiskReader:
        raise error

    return open_it


def faulty(disk: MemoryDisk, script: Script, in_flight: int = 4, at_once: int = 1 << 20) -> DiskReader:
    return FaultyReader(
        MemoryReader(disk, requests_in_flight=in_flight, max_request_bytes=at_once), script
    )


class Lender:
    """Requests as the mover makes them: no more than `buffers` of them are out at a time."""

    def __init__(self, buffers: int, step: int = BLOCK) -> None:
        self._free = buffers
        self._step = step

    def __iter__(self) -> Iterator[ReadRequest]:
        for request in requests(self._step):
            assert self._free, "the reader would wait for ever for a buffer that it holds itself"
            self._free -= 1
            yield request

    def back(self) -> None:
        self._free += 1


@pytest.mark.parametrize("at", [1, BLOCKS // 2, BLOCKS])
@pytest.mark.parametrize("in_flight", [1, 4, 16])
@pytest.mark.parametrize("error", [PermanentTransportError, TransientTransportError, OSError])
def test_each_block_is_read_once_but_those_in_flight(
    at: int, in_flight: int, error: type[Exception]
) -> None:
    disk = MemoryDisk.of(IMAGE)
    script = Script(at, error=lambda: error("cut"))
    left = Left()
    reader = FailoverReader(
        [
            Way(MODES[0], lambda: faulty(disk, script, in_flight)),
            Way(MODES[2], lambda: MemoryReader(disk, requests_in_flight=4)),
        ],
        left,
    )
    answered = {a.offset: bytes(a.buffer) for a in reader.read_many(requests())}
    assert b"".join(answered[offset] for offset in sorted(answered)) == IMAGE
    counted = Counter(disk.reads)
    again = {read for read, times in counted.items() if times > 1}
    assert set(counted) == {(n * BLOCK, BLOCK) for n in range(BLOCKS)}
    assert max(counted.values()) == 2
    # The failing turn had read its block already, which nobody was told: that one is read again.
    assert 1 <= len(again) <= in_flight
    assert left.modes == [MODES[0]]
    assert reader.mode is MODES[2]
    assert reader.capabilities.mode is MODES[2]


@given(
    st.lists(st.integers(1, 2 * BLOCKS), max_size=3),
    st.lists(
        st.tuples(st.integers(1, 40), st.sampled_from([512, 1024, 1 << 20])), min_size=4, max_size=4
    ),
    st.sampled_from([512, 1024, 4096]),
)
def test_every_request_is_answered_once_whatever_the_ways_can_do(
    failing: list[int], ables: list[tuple[int, int]], step: int
) -> None:
    disk = MemoryDisk.of(IMAGE)
    first, *rest = ables
    ways: list[Way[DiskReader]] = []
    for number, (in_flight, at_once) in enumerate((first, *rest)):
        turns = failing[number : number + 1]
        script = Script(*turns, error=lambda: PermanentTransportError("gone"))
        ways.append(
            Way(
                MODES[min(number, 2)],
                lambda script=script, n=in_flight, b=at_once: faulty(disk, script, n, b),  # type: ignore[misc]
            )
        )
    reader = FailoverReader(ways)
    lender = Lender(reader.capabilities.requests_in_flight, min(step, first[1]))
    answers = []
    for answer in reader.read_many(lender):
        answers.append(answer)
        lender.back()
    assert len({id(a) for a in answers}) == len(answers)
    whole = sorted((a.offset, bytes(a.buffer)) for a in answers)
    assert b"".join(content for _, content in whole) == IMAGE


def test_a_way_that_does_not_open_is_passed_over() -> None:
    left = Left()
    reader = FailoverReader(
        [
            Way(MODES[0], broken(TransportUnavailableError("no LUN"))),
            Way(MODES[1], broken(PermanentTransportError("no right"))),
            Way(MODES[2], lambda: MemoryReader(MemoryDisk.of(IMAGE))),
        ],
        left,
    )
    assert left == [(MODES[0], "no LUN"), (MODES[1], "no right")]
    buffer = bytearray(BLOCK)
    reader.read_into(BLOCK, memoryview(buffer))
    assert bytes(buffer) == IMAGE[BLOCK : 2 * BLOCK]


def test_reconnecting_comes_first_then_the_next_mode() -> None:
    disk = MemoryDisk.of(IMAGE)
    opened: list[int] = []

    def open_first() -> DiskReader:
        opened.append(1)
        return faulty(disk, script)

    script = Script(*range(50, 53))
    left = Left()
    reader = FailoverReader(
        [
            Way(MODES[1], lambda: ReconnectingReader(open_first, 3, unwaited)),
            Way(MODES[2], lambda: MemoryReader(disk)),
        ],
        left,
    )
    assert len(list(reader.read_many(requests()))) == BLOCKS
    assert len(opened) == 3
    assert left.modes == [MODES[1]]
    assert script.unused == set()


def test_the_last_ways_error_is_raised_and_on_record() -> None:
    left = Left()
    ways = [
        Way(MODES[1], broken(PermanentTransportError("no slot"))),
        Way(MODES[2], broken(TransientTransportError("host busy"))),
    ]
    with pytest.raises(TransientTransportError, match="host busy"):
        FailoverReader(ways, left)
    assert left.modes == [MODES[1], MODES[2]]


@pytest.mark.parametrize(
    ("mode", "raised"),
    [
        (TransportMode.DIRECT_NFS, TransportUnavailableError),
        (TransportMode.NBDSSL, ObjectGoneError),
    ],
)
def test_what_a_direct_mode_calls_final_is_final_for_this_proxy_only(
    mode: TransportMode, raised: type[Exception]
) -> None:
    with pytest.raises(PermanentTransportError, match="no such file") as caught:
        FailoverReader([Way(mode, broken(ObjectGoneError("no such file")))])
    assert caught.type is raised


def test_a_host_that_is_not_the_one_it_should_be_ends_everything() -> None:
    left = Left()
    ways: list[Way[DiskReader]] = [
        Way(TransportMode.NBDSSL, broken(PeerIdentityError("another certificate"))),
        Way(TransportMode.NBD, lambda: MemoryReader(MemoryDisk.of(IMAGE))),
    ]
    with pytest.raises(PeerIdentityError):
        FailoverReader(ways, left)
    assert left == []


def test_a_disk_of_another_size_is_not_read() -> None:
    disk, other = MemoryDisk.of(IMAGE), MemoryDisk.of(IMAGE * 2)
    left = Left()
    reader = FailoverReader(
        [
            Way(MODES[0], lambda: faulty(disk, Script(3))),
            Way(MODES[1], lambda: MemoryReader(other)),
            Way(MODES[2], lambda: MemoryReader(disk)),
        ],
        left,
    )
    assert len(list(reader.read_many(requests()))) == BLOCKS
    assert other.reads == []
    assert "instead of" in left[1][1]


def test_what_the_movers_own_iterator_raises_is_no_failure_of_a_mode() -> None:
    def lend() -> Iterator[ReadRequest]:
        yield from list(requests())[:5]
        raise OSError("the mover's own trouble")

    left = Left()
    disk = MemoryDisk.of(IMAGE)
    reader = FailoverReader([Way(mode, lambda: MemoryReader(disk)) for mode in MODES], left)
    with pytest.raises(OSError, match="own trouble"):
        list(reader.read_many(lend()))
    assert left == []


def test_allocation_that_one_mode_answered_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transports.wrappers._ALLOCATION_WINDOW_BYTES", 8192)
    known = (Extent(offset=0, length=1024), Extent(offset=8192, length=1024))
    tells = MemoryDisk(bytearray(IMAGE), allocated=known)
    silent = MemoryDisk.of(IMAGE)
    left = Left()
    reader = FailoverReader(
        [
            Way(MODES[0], lambda: FaultyReader(MemoryReader(tells), Script(2))),
            Way(MODES[2], lambda: MemoryReader(silent)),
        ],
        left,
    )
    extents = list(reader.allocated_extents(0, len(IMAGE)))
    assert extents == [known[0], Extent(offset=8192, length=len(IMAGE) - 8192)]
    assert left.modes == [MODES[0]]


class OfChain(MemoryReader):
    """Knows what the disk and its parents hold."""

    @property
    def capabilities(self) -> ReaderCapabilities:
        return replace(super().capabilities, whole_chain=True)


def test_what_a_delta_alone_holds_is_never_taken_for_the_chain() -> None:
    """The caller asked once whether the whole chain is told of, and is answered by a later mode."""
    chain = MemoryDisk(bytearray(IMAGE), allocated=(Extent(offset=0, length=len(IMAGE)),))
    delta = MemoryDisk(bytearray(IMAGE), allocated=(Extent(offset=0, length=512),))

    def opened() -> FailoverReader:
        return FailoverReader(
            [
                Way(MODES[0], lambda: FaultyReader(OfChain(chain), Script(1))),
                Way(MODES[2], lambda: MemoryReader(delta)),
            ]
        )

    reader = opened()
    assert reader.capabilities.whole_chain
    assert list(reader.allocated_extents(0, len(IMAGE))) == [Extent(offset=0, length=len(IMAGE))]
    reader = opened()
    reader.read_into(0, memoryview(bytearray(512)))
    assert reader.mode is MODES[2]
    assert not reader.capabilities.whole_chain
    assert list(reader.allocated_extents(0, len(IMAGE))) == [Extent(offset=0, length=len(IMAGE))]


def test_a_closed_reader_reads_nothing_and_opens_nothing() -> None:
    reader = FailoverReader([Way(MODES[2], lambda: MemoryReader(MemoryDisk.of(IMAGE)))])
    reader.close()
    reader.close()
    with pytest.raises(TransientTransportError, match="closed"):
        reader.read_into(0, memoryview(bytearray(512)))
    with pytest.raises(TransientTransportError, match="closed"):
        list(reader.read_many(requests()))


# ---- writing --------------------------------------------------------------------------------------


class Able(MemoryWriter):
    """A MemoryWriter with chosen capabilities; notes when it is written to or closed beside others."""

    def __init__(self, disk: MemoryDisk, **abilities: object) -> None:
        super().__init__(disk)
        self._able = replace(super().capabilities, **abilities)  # type: ignore[arg-type]
        self._lock = threading.Lock()
        self.busy = 0
        self.most = 0
        self.closed_busy = False

    @property
    def capabilities(self) -> WriterCapabilities:
        return self._able

    def write_from(self, offset: int, buffer: memoryview) -> None:
        assert len(buffer) <= self._able.max_request_bytes
        with self._lock:
            self.busy += 1
            self.most = max(self.most, self.busy)
        try:
            super().write_from(offset, buffer)
        finally:
            with self._lock:
                self.busy -= 1

    def close(self) -> None:
        self.closed_busy = self.closed_busy or self.busy > 0
        super().close()


def write_all(writer: DiskWriter, step: int = 4096) -> None:
    for offset in range(0, len(IMAGE), step):
        writer.write_from(offset, memoryview(IMAGE)[offset : offset + step])
    writer.flush()
    writer.close()


@pytest.mark.parametrize("at", [1, 8, 15])
def test_a_restore_goes_on_in_the_next_mode_and_writes_nothing_twice_but_what_was_in_flight(
    at: int,
) -> None:
    disk = MemoryDisk(bytearray(len(IMAGE)))
    left = Left()
    writer = FailoverWriter(
        [
            Way(
                MODES[1],
                lambda: FaultyWriter(
                    MemoryWriter(disk), Script(at, error=lambda: PermanentTransportError("detached"))
                ),
            ),
            Way(MODES[2], lambda: MemoryWriter(disk)),
        ],
        left,
    )
    write_all(writer)
    assert bytes(disk.content) == IMAGE
    assert len(disk.writes) == len(IMAGE) // 4096 + 1
    assert left == [(MODES[1], "detached")]
    assert writer.mode is MODES[2]


def test_many_threads_fail_over_once() -> None:
    disk = MemoryDisk(bytearray(len(IMAGE)))
    one = Able(disk, threads=4)
    other = Able(disk, threads=2, max_request_bytes=1024)
    script = Script(5, 6, 7, 8, error=lambda: TransientTransportError("cut"))
    opened: list[TransportMode] = []

    def way(mode: TransportMode, writer: DiskWriter) -> Way[DiskWriter]:
        def open_it() -> DiskWriter:
            opened.append(mode)
            return writer

        return Way(mode, open_it)

    left = Left()
    writer = FailoverWriter([way(MODES[1], FaultyWriter(one, script)), way(MODES[2], other)], left)
    assert writer.capabilities.threads == 4
    offsets = iter(range(0, len(IMAGE), 2048))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                offset = next(offsets, None)
            if offset is None:
                return
            writer.write_from(offset, memoryview(IMAGE)[offset : offset + 2048])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.flush()
    assert bytes(disk.content) == IMAGE
    assert opened == [MODES[1], MODES[2]]
    assert left.modes == [MODES[1]]
    assert other.most <= 2
    assert not one.closed_busy


def test_every_thread_hears_of_the_end() -> None:
    disk = MemoryDisk(bytearray(len(IMAGE)))
    always = Script(*range(1, 100), error=lambda: PermanentTransportError("gone"))
    writer = FailoverWriter([Way(MODES[2], lambda: FaultyWriter(Able(disk, threads=4), always))])
    heard: list[str] = []

    def work() -> None:
        with pytest.raises(PermanentTransportError) as caught:
            writer.write_from(0, memoryview(IMAGE)[:512])
        heard.append(str(caught.value))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == ["gone"] * 4


def test_zeros_that_were_left_out_keep_a_mode_out_that_would_not_show_them() -> None:
    disk = MemoryDisk(bytearray(len(IMAGE)))
    left = Left()
    refused = Able(disk, reads_as_zero_when_new=False)
    writer = FailoverWriter(
        [
            Way(MODES[1], lambda: FaultyWriter(MemoryWriter(disk), Script(1))),
            Way(MODES[0], lambda: refused),
            Way(MODES[2], lambda: MemoryWriter(disk)),
        ],
        left,
    )
    write_all(writer)
    assert refused.most == 0
    assert left.modes == [MODES[1], MODES[0]]
    assert bytes(disk.content) == IMAGE


class Forgetful(Able):
    """Loses what it wrote when it was not flushed."""

    def __init__(self, disk: MemoryDisk, script: Script) -> None:
        super().__init__(disk, answered_is_kept=False)
        self._script = script

    def write_from(self, offset: int, buffer: memoryview) -> None:
        self._script.step()
        super().write_from(offset, buffer)

    def flush(self) -> None:
        self._script.step()
        super().flush()


def test_what_may_be_lost_with_a_writer_is_not_taken_for_written() -> None:
    disk = MemoryDisk(bytearray(len(IMAGE)))

    def ways(*turns: int) -> list[Way[DiskWriter]]:
        script = Script(*turns, error=lambda: TransientTransportError("server gone"))
        return [
            Way(TransportMode.DIRECT_NFS, lambda: Forgetful(disk, script)),
            Way(MODES[2], lambda: MemoryWriter(disk)),
        ]

    write_all(FailoverWriter(ways(5)))  # its flush on leaving succeeds
    assert bytes(disk.content) == IMAGE
    left = Left()
    writer = FailoverWriter(ways(5, 6), left)
    with pytest.raises(TransientTransportError, match="written again from its beginning"):
        write_all(writer)
    assert left.modes == [TransportMode.DIRECT_NFS]


@given(st.sets(st.integers(1, 60), max_size=20), st.integers(1, 40))
def test_reconnecting_and_failing_over_together(failing: set[int], last: int) -> None:
    disk = MemoryDisk(bytearray(len(IMAGE)))
    script = Script(*failing)
    end = Script(last, error=lambda: PermanentTransportError("gone"))
    writer = FailoverWriter(
        [
            Way(
                MODES[1],
                lambda: ReconnectingWriter(
                    lambda: FaultyWriter(FaultyWriter(MemoryWriter(disk), script), end), 3, unwaited
                ),
            ),
            Way(MODES[2], lambda: MemoryWriter(disk)),
        ]
    )
    write_all(writer)
    assert bytes(disk.content) == IMAGE


def test_a_writer_that_is_closed_while_another_is_opened_leaves_none_open() -> None:
    disk = MemoryDisk(bytearray(len(IMAGE)))
    opening, may_open = threading.Event(), threading.Event()
    second = Able(disk)

    def open_second() -> DiskWriter:
        opening.set()
        assert may_open.wait(60)
        return second

    writer = FailoverWriter(
        [Way(MODES[1], lambda: FaultyWriter(MemoryWriter(disk), Script(1))), Way(MODES[2], open_second)]
    )

    def write() -> None:
        with pytest.raises(TransientTransportError, match="closed"):
            writer.write_from(0, memoryview(IMAGE)[:512])

    thread = threading.Thread(target=write)
    thread.start()
    assert opening.wait(60)
    writer.close()
    may_open.set()
    thread.join()
    with pytest.raises(TransientTransportError):
        second.write_from(0, memoryview(IMAGE)[:512])


def test_capabilities_are_those_of_the_first_way() -> None:
    class Few(MemoryReader):
        @property
        def capabilities(self) -> ReaderCapabilities:
            return replace(super().capabilities, requests_in_flight=2)

    disk = MemoryDisk.of(IMAGE)
    alone = FailoverReader([Way(MODES[0], lambda: Few(disk))])
    assert alone.capabilities.requests_in_flight == 2
    pair = FailoverReader([Way(MODES[0], lambda: Few(disk)), Way(MODES[2], lambda: Few(disk))])
    assert pair.capabilities.requests_in_flight == 16
    with pytest.raises(ValueError, match="no way"):
        FailoverReader([])
