"""Orders that bring what changed with them, because the VM snapshot is gone when they are carried out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.model import ReadMode
from proxy_worker.contracts.extents import pack_extents
from tests.unit.proxy_worker.test_disk_work import MIB, Bench
from transports.base import Extent


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_nobody_is_asked_for_what_the_order_says(bench: Bench) -> None:
    first = bench.backup()
    bench.disk.content[MIB : MIB + 512] = b"x" * 512
    bench.disk.reads.clear()
    bench.center.asked.clear()
    second = bench.backup(
        "22222222-2222-3333-4444-555555555555",
        disk=replace(bench.ref(), snapshot_moref=None),
        previous_map_root=first.map_root,
        previous_change_id="52/1",
        known_changes=pack_extents([Extent(offset=MIB, length=512)]),
    )
    assert (second.read_mode, second.read_mode_reason) == (ReadMode.INCREMENT, "")
    assert {offset // MIB for offset, _ in bench.disk.reads} == {1}
    assert bench.center.asked == []


def test_a_list_that_makes_no_sense_is_a_full_scan(bench: Bench) -> None:
    first = bench.backup()
    second = bench.backup(
        "22222222-2222-3333-4444-555555555555",
        disk=replace(bench.ref(), snapshot_moref=None),
        previous_map_root=first.map_root,
        previous_change_id="52/1",
        known_changes="AAAA",
    )
    assert second.read_mode is ReadMode.FULL_SCAN
    assert "not to be used" in second.read_mode_reason
