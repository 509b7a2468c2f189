"""Orders whose transport mode fails on the way, and increments whose change tracking lies."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import CancelledError
from pipeline.model import ReadMode
from pipeline.repository.work import read_work
from proxy_worker.contracts.ids import Attempt
from proxy_worker.contracts.messages import BackupDiskOrder, CompressionLevel, TaskKind, TaskOutcome
from proxy_worker.disk_work import Tools
from tests.unit.proxy_worker.test_disk_work import MIB, Bench
from transports.base import DiskReader, DiskWriter, Extent, TransportMode
from transports.errors import (
    PermanentTransportError,
    TransientTransportError,
    TransportUnavailableError,
)
from transports.testing.fakes import MemoryDisk, MemoryReader, MemoryWriter
from transports.testing.faults import FaultyReader, FaultyWriter, Script

TASK = "33333333-2222-3333-4444-555555555555"
BLOCKS = 64
HOTADD, SAN, NETWORK = TransportMode.HOTADD, TransportMode.DIRECT_SAN, TransportMode.NBDSSL


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    def pause(tools: Tools, _: float) -> None:
        if tools.cancel.is_set():
            raise CancelledError("cancelled while the connection to the disk was lost")

    monkeypatch.setattr(Tools, "pause", pause)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    made.disk = MemoryDisk.of(random.Random(3).randbytes(BLOCKS * MIB))
    made.modes = (SAN, HOTADD, NETWORK)
    return made


def failing(
    bench: Bench, *turns: int, error: Callable[[], Exception], in_flight: int = 4
) -> Callable[[], DiskReader]:
    """Fails at these answers. With several in flight the newest is answered first, so that the first block
    may stay open to the end; with one everything comes in the disk's order.
    """
    script = Script(*turns, error=error)
    return lambda: FaultyReader(MemoryReader(bench.disk, requests_in_flight=in_flight), script)


def restored(bench: Bench, map_root: str) -> bytearray:
    order = bench.restore_order(map_root, target_disk=bench.ref())
    bench.modes = (NETWORK,)
    bench.run(bench.request(TaskKind.RESTORE_DISK_TO_VM, restore=order))
    return bench.target.content


@pytest.mark.parametrize("at", [1, BLOCKS // 2, BLOCKS])
def test_a_disk_is_ended_in_the_next_mode_and_each_block_read_once(bench: Bench, at: int) -> None:
    bench.read_modes[SAN] = failing(bench, at, error=lambda: PermanentTransportError("path down"))
    done = bench.backup()
    assert done.outcome is TaskOutcome.SUCCESS
    assert done.mode is HOTADD
    assert [(one.mode, one.reason) for one in done.failovers] == [(SAN, "path down")]
    read = Counter(bench.disk.reads)
    assert len(read) == BLOCKS
    in_flight = 4  # as MemoryReader has it
    assert sum(read.values()) - BLOCKS <= in_flight
    assert bench.reports[-1].mode is HOTADD
    assert restored(bench, done.map_root) == bench.disk.content


def test_two_failovers_and_one_that_does_not_open(bench: Bench) -> None:
    def refuse() -> DiskReader:
        raise TransportUnavailableError("no LUN")

    bench.read_modes[SAN] = refuse
    # Three failures in a row are enough where another mode can go on at once.
    turns = (5, 6, 7)
    bench.read_modes[HOTADD] = failing(bench, *turns, error=lambda: TransientTransportError("cut"))
    done = bench.backup()
    assert [one.mode for one in done.failovers] == [SAN, HOTADD]
    assert done.mode is NETWORK
    assert restored(bench, done.map_root) == bench.disk.content


def test_a_mode_without_fallback_fails_and_says_so(bench: Bench) -> None:
    bench.modes = (HOTADD,)
    bench.read_modes[HOTADD] = failing(bench, 3, error=lambda: PermanentTransportError("detached"))
    with pytest.raises(TransportUnavailableError, match="detached"):
        bench.backup()
    assert [one.mode for one in bench.left] == [HOTADD]


@pytest.mark.parametrize("at", [1, BLOCKS // 2, BLOCKS])
def test_what_was_read_from_a_storage_snapshot_is_not_read_on_from_the_disk(
    bench: Bench, at: int
) -> None:
    bench.modes = (TransportMode.STORAGE_SNAPSHOT, NETWORK)
    bench.read_modes[TransportMode.STORAGE_SNAPSHOT] = failing(
        bench, at, error=lambda: PermanentTransportError("clone gone")
    )
    with pytest.raises(TransportUnavailableError, match="clone gone"):
        bench.backup()


@pytest.mark.parametrize("at", [1, BLOCKS // 2, BLOCKS])
def test_a_restore_goes_on_in_the_next_mode(bench: Bench, at: int) -> None:
    done = bench.backup()
    bench.modes = (HOTADD, NETWORK)
    script = Script(at, error=lambda: PermanentTransportError("detached"))

    def hotadd() -> DiskWriter:
        return FaultyWriter(MemoryWriter(bench.target), script)

    bench.write_modes[HOTADD] = hotadd
    bench.left = []
    order = bench.restore_order(done.map_root, target_disk=bench.ref())
    result = bench.run(bench.request(TaskKind.RESTORE_DISK_TO_VM, restore=order))
    assert result.mode is NETWORK
    assert [one.mode for one in result.failovers] == [HOTADD]
    assert bench.target.content == bench.disk.content
    written = Counter(bench.target.writes)
    assert sum(written.values()) - len(written) == 1


def test_another_attempt_goes_on_in_another_mode(bench: Bench) -> None:
    """The first knows what is allocated and dies, the second does not know and reads on."""
    bench.disk = MemoryDisk(
        bytearray(
            random.Random(5).randbytes(8 * MIB) + bytes(8 * MIB) + random.Random(6).randbytes(8 * MIB)
        ),
        allocated=(Extent(offset=0, length=8 * MIB), Extent(offset=16 * MIB, length=8 * MIB)),
    )
    blind = MemoryDisk(bench.disk.content)
    bench.modes = (SAN,)
    bench.read_modes[SAN] = failing(
        bench, 12, error=lambda: PermanentTransportError("path down"), in_flight=1
    )
    with pytest.raises(TransportUnavailableError):
        bench.backup()
    bench.modes = (NETWORK,)
    bench.read_modes[NETWORK] = lambda: MemoryReader(blind)
    done = bench.backup()
    assert not any(offset < 8 * MIB for offset, _ in blind.reads)
    assert restored(bench, done.map_root) == bench.disk.content


# ---- trust ----------------------------------------------------------------------------------------


def increment(bench: Bench, first: Any, task: str = TASK, **changes: Any) -> Any:
    values = {
        "previous_map_root": first.map_root,
        "previous_change_id": "52/1",
        "sampled_blocks": 16,
        **changes,
    }
    return bench.backup(task, **values)


@pytest.fixture
def tracked(bench: Bench) -> Bench:
    bench.modes = (NETWORK,)
    bench.center.areas["52/1"] = []
    return bench


def test_nothing_is_read_where_nothing_changed(tracked: Bench) -> None:
    first = tracked.backup()
    tracked.disk.reads.clear()
    done = increment(tracked, first)
    assert tracked.disk.reads == []
    assert (done.read_mode, done.sampled_blocks, done.tracking_mismatch) == (ReadMode.INCREMENT, 0, "")
    # unless it is time to
    done = increment(tracked, first, TASK.replace("3", "4"), sample_when_unchanged=True)
    assert len(tracked.disk.reads) == done.sampled_blocks == 16
    assert done.read_mode is ReadMode.INCREMENT


def test_a_sample_is_read_beside_what_changed(tracked: Bench) -> None:
    first = tracked.backup()
    tracked.disk.reads.clear()
    tracked.disk.content[5 * MIB] ^= 1
    tracked.center.areas["52/1"] = [Extent(offset=5 * MIB, length=512)]
    done = increment(tracked, first)
    assert (done.read_mode, done.sampled_blocks) == (ReadMode.INCREMENT, 16)
    assert len(tracked.disk.reads) == 17
    assert restored(tracked, done.map_root) == tracked.disk.content


def test_a_change_that_tracking_missed_ends_the_trust(tracked: Bench) -> None:
    first = tracked.backup()
    for block in range(0, BLOCKS, 2):
        tracked.disk.content[block * MIB + 7] ^= 1
    tracked.center.areas["52/1"] = [Extent(offset=0, length=MIB)]
    tracked.disk.reads.clear()
    done = increment(tracked, first)
    assert done.outcome is TaskOutcome.SUCCESS
    assert done.read_mode is ReadMode.FULL_SCAN
    assert done.read_mode_reason == done.tracking_mismatch
    assert (
        "of 16 blocks that change tracking called unchanged had changed, at byte"
        in done.tracking_mismatch
    )
    assert len(tracked.disk.reads) == BLOCKS + 16
    assert done.stats.blocks.new == BLOCKS // 2  # only what differs is stored
    assert restored(tracked, done.map_root) == tracked.disk.content


def test_an_attempt_that_dies_after_it_lost_trust_leaves_none_to_the_next(tracked: Bench) -> None:
    first = tracked.backup()
    for block in range(0, BLOCKS, 2):
        tracked.disk.content[block * MIB + 7] ^= 1
    tracked.center.areas["52/1"] = [Extent(offset=0, length=MIB)]
    cut = failing(tracked, 16 + 20, error=lambda: PermanentTransportError("died"), in_flight=1)
    tracked.read_modes[NETWORK] = cut
    with pytest.raises(PermanentTransportError, match="died"):
        increment(tracked, first)
    record = read_work(tracked.repository.storage, tracked.repository.keyring, TASK)
    assert record is not None
    assert record.read_mode == ReadMode.FULL_SCAN.value
    tracked.read_modes.clear()
    tracked.disk.reads.clear()
    again = increment(tracked, first)
    # The same blocks were asked, so the same is found; and it went on where the first had come.
    assert again.tracking_mismatch
    assert len(tracked.disk.reads) < BLOCKS + 16
    assert restored(tracked, again.map_root) == tracked.disk.content


def test_what_an_earlier_attempt_found_stands_although_tracking_says_otherwise_now(
    tracked: Bench,
) -> None:
    first = tracked.backup()
    tracked.disk.content[9 * MIB] ^= 1
    request = tracked.request(
        TaskKind.BACKUP_DISK,
        backup=BackupDiskOrder(
            disk=tracked.ref(),
            previous_map_root=first.map_root,
            previous_change_id="52/1",
            current_change_id="52/2",
            full_read_reason="asked for",
            datastore_is_vmfs=False,
            compression=CompressionLevel.FAST,
        ),
    )
    tracked.read_modes[NETWORK] = failing(tracked, 20, error=lambda: PermanentTransportError("died"))
    with pytest.raises(PermanentTransportError):
        tracked.run(request)
    tracked.read_modes.clear()
    assert request.backup is not None
    order = replace(request.backup, full_read_reason="", sampled_blocks=1)
    done = tracked.run(replace(request, attempt=Attempt(2), backup=order))
    assert done.read_mode is ReadMode.FULL_SCAN
    assert "an earlier attempt" in done.read_mode_reason
    assert restored(tracked, done.map_root) == tracked.disk.content


def test_a_trial_goes_on_in_another_mode_too(tracked: Bench) -> None:
    first = tracked.backup()
    tracked.disk.content[5 * MIB] ^= 1
    tracked.center.areas["52/1"] = [Extent(offset=5 * MIB, length=512)]
    tracked.modes = (HOTADD, NETWORK)
    tracked.read_modes[HOTADD] = failing(tracked, 3, error=lambda: PermanentTransportError("detached"))
    tracked.left = []
    done = increment(tracked, first)
    assert (done.mode, done.sampled_blocks, done.read_mode) == (NETWORK, 16, ReadMode.INCREMENT)
    assert restored(tracked, done.map_root) == tracked.disk.content


def test_cancelling_ends_waiting_for_a_lost_mode(bench: Bench) -> None:
    bench.modes = (NETWORK,)

    def lose() -> Exception:
        bench.cancel.set()
        return TransientTransportError("cut")

    bench.read_modes[NETWORK] = failing(bench, 3, error=lose)
    with pytest.raises(CancelledError, match="cancelled"):
        bench.backup()


def test_a_moment_in_which_the_server_cannot_present_a_disk_is_waited_for(bench: Bench) -> None:
    bench.modes = (HOTADD, NETWORK)
    bench.read_faults = [TransientTransportError("the proxy's VM is being changed")]
    done = bench.backup()
    assert (done.mode, done.failovers) == (HOTADD, ())
    # but not for ever
    bench.read_faults = [TransientTransportError("the proxy's VM is being changed")] * 3
    done = bench.backup(TASK)
    assert (done.mode, [one.mode for one in done.failovers]) == (NETWORK, [HOTADD])
