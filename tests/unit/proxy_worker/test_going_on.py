"""Orders that go on from what a session that was stopped had read of the disk."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import CancelledError
from pipeline.model import ReadMode
from pipeline.repository.work import read_work
from proxy_worker.contracts.extents import pack_extents
from proxy_worker.contracts.messages import TaskKind, TaskOutcome
from tests.unit.proxy_worker.test_disk_work import MIB, Bench
from transports.base import Extent, ReadRequest, TransportMode
from transports.errors import ChangeTrackingUnusableError
from transports.testing.fakes import MemoryDisk, MemoryReader

EARLIER = "aaaaaaaa-2222-3333-4444-555555555555"
LATER = "bbbbbbbb-2222-3333-4444-555555555555"
STOP_AT = 3 * MIB
WHOLE = {0, 1, 2, 3, 4, 5}


class Stopping(MemoryReader):
    """The window closes when this reader has read so far."""

    def __init__(self, disk: MemoryDisk, cancel: threading.Event, stop_at: int) -> None:
        super().__init__(disk, requests_in_flight=1)
        self._cancel = cancel
        self._stop_at = stop_at

    def read_many(self, requests: Iterable[ReadRequest]) -> Iterator[ReadRequest]:
        for done in super().read_many(requests):
            if done.offset >= self._stop_at:
                self._cancel.set()
            yield done


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def stop(bench: Bench, *, stop_at: int = STOP_AT, task: str = EARLIER, **changes: Any) -> None:
    """A session that reads the disk and is stopped; its moment's change id is 52/2."""
    bench.read_modes[TransportMode.NBDSSL] = lambda: Stopping(bench.disk, bench.cancel, stop_at)
    with pytest.raises(CancelledError):
        bench.backup(task, **changes)
    bench.cancel.clear()
    bench.read_modes.clear()
    bench.disk.reads.clear()


def go_on(bench: Bench, *, task: str = LATER, **changes: Any) -> Any:
    return bench.backup(
        task,
        **{
            "current_change_id": "52/3",
            "continue_work": EARLIER,
            "continue_change_id": "52/2",
            **changes,
        },
    )


def write(bench: Bench, at: int, text: bytes) -> Extent:
    """What the guest writes between the two windows."""
    bench.disk.content[at : at + len(text)] = text
    return Extent(offset=at, length=len(text))


def read(bench: Bench) -> set[int]:
    """Which MiB were read, in order of the disk."""
    return {offset // MIB for offset, _ in bench.disk.reads}


def restores_equal(bench: Bench, map_root: str) -> bool:
    content = bytes(bench.disk.content)
    order = bench.restore_order(map_root, target_disk=bench.ref())
    bench.run(bench.request(TaskKind.RESTORE_DISK_TO_VM, restore=order))
    return bytes(bench.target.content) == content


def came_to(bench: Bench, task: str = EARLIER) -> int:
    """Blocks that the stopped session had read."""
    record = read_work(bench.repository.storage, bench.repository.keyring, task)
    assert record is not None
    return record.next_block


def test_what_was_read_is_not_read_again(bench: Bench) -> None:
    stop(bench)
    done_before = came_to(bench)
    assert done_before >= 3
    bench.center.areas["52/2"] = [write(bench, MIB + 5, b"changed between the windows")]
    done = go_on(bench)
    assert (done.outcome, done.read_mode) == (TaskOutcome.SUCCESS, ReadMode.FULL)
    assert read(bench) == {1} | {block for block in WHOLE if block >= done_before}
    assert done.stats.read_bytes == len(read(bench)) * MIB
    assert done.stats.blocks.unchanged == done_before - 1
    assert restores_equal(bench, done.map_root)


def test_an_increment_goes_on_as_well(bench: Bench) -> None:
    base = bench.backup("cccccccc-2222-3333-4444-555555555555", current_change_id="52/1")
    since_base = [write(bench, n * MIB, b"first change") for n in range(6)]
    bench.center.areas["52/1"] = since_base
    increment = {"previous_map_root": base.map_root, "previous_change_id": "52/1"}
    stop(bench, **increment)
    done_before = came_to(bench)
    bench.center.areas["52/2"] = [write(bench, 7, b"second change")]
    done = go_on(bench, **increment)
    assert done.read_mode is ReadMode.INCREMENT
    assert read(bench) == {0} | {block for block in WHOLE if block >= done_before}
    assert restores_equal(bench, done.map_root)


def test_three_windows(bench: Bench) -> None:
    stop(bench, stop_at=MIB)
    first = came_to(bench)
    bench.center.areas["52/2"] = [write(bench, 9, b"one")]
    middle = "dddddddd-2222-3333-4444-555555555555"
    stop(
        bench,
        stop_at=3 * MIB,
        task=middle,
        current_change_id="52/3",
        continue_work=EARLIER,
        continue_change_id="52/2",
    )
    second = came_to(bench, middle)
    assert second > first
    bench.center.areas["52/3"] = [write(bench, MIB + 9, b"two")]
    done = go_on(bench, current_change_id="52/4", continue_work=middle, continue_change_id="52/3")
    assert read(bench) == {1} | {block for block in WHOLE if block >= second}
    assert restores_equal(bench, done.map_root)


def test_a_disk_that_was_read_to_its_end_is_only_brought_up_to_date(bench: Bench) -> None:
    """One of a VM of which another disk was left."""
    bench.backup(EARLIER)
    bench.disk.reads.clear()
    bench.center.areas["52/2"] = [write(bench, 5 * MIB, b"late")]
    done = go_on(bench)
    assert read(bench) == {5}
    assert restores_equal(bench, done.map_root)


def test_another_attempt_goes_on_from_its_own_work(bench: Bench) -> None:
    stop(bench)
    bench.center.areas["52/2"] = [write(bench, 3, b"changed")]
    bench.read_modes[TransportMode.NBDSSL] = lambda: Stopping(bench.disk, bench.cancel, 4 * MIB)
    with pytest.raises(CancelledError):
        go_on(bench)
    bench.cancel.clear()
    bench.read_modes.clear()
    before = came_to(bench, LATER)
    bench.disk.reads.clear()
    done = go_on(bench)
    assert read(bench) == {block for block in WHOLE if block >= before}
    assert restores_equal(bench, done.map_root)


def test_changes_may_come_with_the_order(bench: Bench) -> None:
    stop(bench)
    packed = pack_extents([write(bench, 0, b"changed")])
    done = go_on(bench, continue_changes=packed)
    assert bench.center.asked == []
    assert 1 not in read(bench)
    assert restores_equal(bench, done.map_root)


@pytest.mark.parametrize("why", ["no answer", "no change id", "gone", "damaged", "another mode"])
def test_where_it_cannot_be_trusted_everything_is_read(bench: Bench, why: str) -> None:
    stop(bench)
    write(bench, MIB, b"nobody says that this changed")
    bench.center.areas["52/2"] = []
    changes: dict[str, Any] = {}
    name = next(iter(bench.repository.storage.list("work/"))).name
    if why == "no answer":
        bench.center.areas["52/2"] = ChangeTrackingUnusableError("tracking was reset")
    elif why == "no change id":
        changes["continue_change_id"] = ""
    elif why == "gone":
        bench.repository.storage.delete(name)
    elif why == "damaged":
        bench.repository.storage.replace(name, b"damaged")
    else:
        base = bench.backup("cccccccc-2222-3333-4444-555555555555", current_change_id="52/1")
        bench.disk.reads.clear()
        changes |= {"previous_map_root": base.map_root, "full_read_reason": "the disk was resized"}
    done = go_on(bench, **changes)
    assert read(bench) == WHOLE
    assert restores_equal(bench, done.map_root)


def test_a_sample_that_differs_ends_the_trust(bench: Bench) -> None:
    stop(bench)
    bench.center.areas["52/2"] = []
    write(bench, MIB, b"nobody says that this changed")
    done = go_on(bench, sampled_blocks=16)
    assert read(bench) == WHOLE
    assert "had changed" in done.tracking_mismatch
    assert restores_equal(bench, done.map_root)


def test_a_sample_that_agrees_is_counted(bench: Bench) -> None:
    stop(bench)
    bench.center.areas["52/2"] = []
    done = go_on(bench, sampled_blocks=2)
    assert (done.sampled_blocks, done.tracking_mismatch) == (2, "")
    assert restores_equal(bench, done.map_root)


def test_an_earlier_work_that_had_lost_trust_is_a_reason_to_read_everything(bench: Bench) -> None:
    base = bench.backup("cccccccc-2222-3333-4444-555555555555", current_change_id="52/1")
    bench.disk.reads.clear()
    bench.center.areas["52/1"] = ChangeTrackingUnusableError("no")
    increment = {"previous_map_root": base.map_root, "previous_change_id": "52/1"}
    stop(bench, **increment)
    bench.center.areas["52/1"] = []
    bench.center.areas["52/2"] = []
    write(bench, 5, b"nobody says that this changed")
    done = go_on(bench, **increment)
    assert done.read_mode is ReadMode.FULL_SCAN
    assert read(bench) == WHOLE
    assert restores_equal(bench, done.map_root)


def test_a_prune_that_keeps_the_work_leaves_it_good(bench: Bench) -> None:
    stop(bench)
    bench.repository.prune(keep_work_ids=[EARLIER], min_age_s=0.0, wait=lambda _s: None)
    bench.center.areas["52/2"] = []
    done = go_on(bench)
    assert 0 not in read(bench)
    assert restores_equal(bench, done.map_root)


def test_a_prune_that_does_not_keep_it_costs_reading_again(bench: Bench) -> None:
    stop(bench)
    bench.repository.prune(keep_work_ids=[], min_age_s=0.0, wait=lambda _s: None)
    bench.center.areas["52/2"] = []
    done = go_on(bench)
    assert read(bench) == WHOLE
    assert restores_equal(bench, done.map_root)
