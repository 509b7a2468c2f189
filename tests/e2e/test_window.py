"""A job whose window closes in the middle of a disk, and goes on in the next."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from vmhaul_lab.images import DiskPlan
from vmhaul_lab.plan import VmPlan
from vmhaul_lab.site import LabSite

from pipeline.repository import Repository
from pipeline.repository.work import WorkRecord, WorkState, read_work
from pipeline.storage import open_storage

from . import operator
from .platform import Platform, explain, wait_until
from .setup import REPOSITORY_PASSWORD, assert_restores, connect, create_job, hashes

pytestmark = pytest.mark.lab

MIB = 1 << 20
DISK_BYTES = 64 * MIB
SAMPLES = 3


@pytest.fixture
def site(tmp_path: Path, labvc_binary: Path) -> Iterator[LabSite]:
    disk = DiskPlan(label="disk0", capacity_bytes=DISK_BYTES, layout="raw")
    vms = (VmPlan(name="db01", disks=(disk,)),)
    with LabSite.quick(tmp_path / "site", vms, binary=labvc_binary) as running:
        running.guest_write(running.disk("db01"), 0, os.urandom(DISK_BYTES))
        yield running


def closed_now() -> str:
    """A window that is closed for hours to come."""
    hour = (datetime.now(UTC).hour + 12) % 24
    return f"daily {hour:02}:00-{hour + 1:02}:00"


def only_task(session: dict[str, Any]) -> dict[str, Any]:
    [task] = [task for vm in session["vms"] for task in vm["tasks"]]
    return dict(task)


def read_at_host(site: LabSite) -> int:
    """Bytes of guest disks that the hosts have sent since the counters were set to zero."""
    return sum(host["bytes_read"] for host in site.control.stats()["hosts"].values())


def test_the_next_window_goes_on_from_the_last_block_that_was_stored(
    product: Platform, site: LabSite, tmp_path: Path
) -> None:
    connect(product, site, tmp_path / "repo")
    create_job(product, "nightly", "--all", "--window", "daily 00:00-24:00")
    product.run("job", "edit", "nightly", "--sample-blocks", str(SAMPLES))
    site.control.fault("nfc-delay", 0, delay_s=1)
    first = product.start_job("nightly")

    def has_read() -> bool:
        progress = only_task(product.session(first))["progress"] or {}
        return int(progress.get("read_bytes", 0)) >= 12 * MIB

    product.wait_for_progress(first)
    wait_until("a part of the disk is read", has_read)
    product.run("job", "edit", "nightly", "--window", closed_now())
    stopped = product.wait_for(first)
    site.control.clear_faults()

    said = (stopped["result"], stopped["stop_reason"])
    assert said == ("warning", "the window closed"), explain(stopped)
    assert stopped["reason"] == "the window closed; 1 of 1 disks are left (1 of 1 VMs)"
    assert operator.snapshot_names(site) == []
    assert product.json("restore-point", "list", "--vm", "db01")["items"] == []
    record = work_record(tmp_path / "repo", only_task(stopped)["id"])
    assert record.state is WorkState.PARTIAL
    stored = record.next_block * MIB
    assert 0 < stored < DISK_BYTES

    # The guest goes on working: once in what was read already, once in what was not.
    disk = site.disk("db01")
    site.guest_write(disk, 100, b"in the part that was read")
    site.guest_write(disk, DISK_BYTES - MIB, b"in the part that was not")
    now = hashes(site, "db01")
    site.control.reset_stats()
    [waiting] = product.json("session", "list", "--state", "queued")["items"]
    assert waiting["retry_of"] == first
    product.run("job", "edit", "nightly", "--window", "daily 00:00-24:00")
    ended = product.wait_for(waiting["id"])

    assert ended["result"] == "success", explain(ended)
    changed = MIB
    left = DISK_BYTES - stored
    sampled = SAMPLES * MIB
    stats = only_task(ended)["stats"]
    assert left + changed <= stats["read_bytes"] <= left + changed + sampled
    assert left + changed <= read_at_host(site) <= left + changed + sampled
    assert_restores(product, "db01@1", "db01", now, tmp_path)
    assert operator.snapshot_names(site) == []
    assert product.run("repository", "check", "main", "--read-data").returncode == 0


def work_record(repository: Path, task_id: str) -> WorkRecord:
    opened = Repository.open_with_password(
        open_storage(str(repository)), REPOSITORY_PASSWORD, clock=time.time
    )
    record = read_work(opened.storage, opened.keyring, task_id)
    assert record is not None
    return record
