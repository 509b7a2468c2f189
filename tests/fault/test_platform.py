"""The whole product while its parts are killed, cut off, filled up and lied to."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from vmhaul_lab.images import DiskPlan
from vmhaul_lab.plan import VmPlan
from vmhaul_lab.site import LabSite
from vmhaul_lab.testing import labvc_binary

from backup_server.broker import server_url
from proxy_worker.contracts.names import redis_client_url
from tests.e2e import operator
from tests.e2e.platform import Platform, explain, platform, wait_until
from tests.e2e.setup import add_repository, add_vcenter, assert_restores, connect, create_job, hashes

__all__ = ["labvc_binary"]
pytestmark = pytest.mark.lab

MIB = 1 << 20
VMS = (
    VmPlan(
        name="vm01",
        disks=tuple(
            DiskPlan(label=f"disk{n}", capacity_bytes=24 * MIB, layout="raw", thin=False)
            for n in (0, 1)
        ),
    ),
)


@pytest.fixture
def site(tmp_path: Path, labvc_binary: Path) -> Iterator[LabSite]:
    with LabSite.quick(tmp_path / "site", VMS, binary=labvc_binary) as running:
        yield running


@pytest.fixture
def product(tmp_path: Path, site: LabSite) -> Iterator[Platform]:
    with platform(tmp_path / "data") as running:
        yield running


@pytest.fixture
def job(product: Platform, site: LabSite, tmp_path: Path) -> str:
    connect(product, site, tmp_path / "repo")
    create_job(product, "nightly", "--vm", "vm01", "--retries", "0")
    return "nightly"


def slow(site: LabSite, delay_s: float = 1.5) -> None:
    site.control.fault("nfc-delay", 1_000_000, delay_s=delay_s)


def in_the_middle(product: Platform, site: LabSite, job: str) -> tuple[str, dict[tuple[str, int], str]]:
    """A session of the job that is reading, and what its disks held when it began."""
    expected = hashes(site, "vm01")
    slow(site)
    session_id = product.start_job(job)
    product.wait_for_progress(session_id)
    return session_id, expected


def assert_sound(
    product: Platform,
    site: LabSite,
    session: dict[str, Any],
    expected: dict[tuple[str, int], str],
    tmp_path: Path,
) -> None:
    """A correct end: one restore point, equal to the source, and nothing left on vSphere."""
    assert session["result"] == "success", explain(session)
    points = product.json("restore-point", "list", "--vm", "vm01")["items"]
    assert len(points) == 1
    assert_restores(product, "vm01@latest", "vm01", expected, tmp_path)
    wait_until("no snapshot is left", lambda: operator.snapshot_names(site) == [], 60)
    product.run("repository", "check", "main", "--read-data")


def test_worker_killed_in_the_middle_of_a_disk(
    product: Platform, site: LabSite, job: str, tmp_path: Path
) -> None:
    session_id, expected = in_the_middle(product, site, job)
    for process in product.processes("proxy_worker", "--data"):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    site.control.clear_faults()
    session = product.wait_for(session_id)

    assert_sound(product, site, session, expected, tmp_path)
    attempts = [task["attempt"] for task in session["vms"][0]["tasks"]]
    assert max(attempts) >= 2


def test_server_killed_in_the_middle_of_a_backup(
    product: Platform, site: LabSite, job: str, tmp_path: Path
) -> None:
    session_id, expected = in_the_middle(product, site, job)
    killed = product.processes("backup_server.main")
    assert killed
    for process in killed:
        process.kill()
    site.control.clear_faults()
    session = product.wait_for(session_id)

    assert_sound(product, site, session, expected, tmp_path)


def test_everything_killed_and_started_again(
    product: Platform, site: LabSite, job: str, tmp_path: Path
) -> None:
    session_id, expected = in_the_middle(product, site, job)
    product.kill_tree()
    assert operator.snapshot_names(site)
    site.control.clear_faults()
    product.start()
    session = product.wait_for(session_id)

    assert_sound(product, site, session, expected, tmp_path)


def broker(product: Platform) -> redis.Redis:
    client: redis.Redis = redis.Redis.from_url(redis_client_url(server_url(product.data / "run")))
    return client


def test_redis_emptied_in_the_middle_of_a_session(
    product: Platform, site: LabSite, job: str, tmp_path: Path
) -> None:
    session_id, expected = in_the_middle(product, site, job)
    with broker(product) as connection:
        connection.flushall()
    site.control.clear_faults()
    session = product.wait_for(session_id)

    assert_sound(product, site, session, expected, tmp_path)


def test_redis_killed_and_its_data_damaged_before_tasks_are_placed(
    product: Platform, site: LabSite, job: str, tmp_path: Path
) -> None:
    expected = hashes(site, "vm01")
    product.run("proxy", "disable", "default")
    session_id = product.start_job(job)
    wait_until(
        "tasks wait for a proxy",
        lambda: any(
            task["state"] == "pending"
            for vm in product.session(session_id)["vms"]
            for task in vm["tasks"]
        ),
    )
    with broker(product) as connection:
        connection.flushall()
        pid = connection.info("server")["process_id"]
    psutil.Process(pid).kill()
    # Half of its files gone is worse than all: such a broker does not start by itself.
    for file in (product.data / "broker" / "appendonlydir").glob("*.incr.aof"):
        file.unlink()
    product.run("proxy", "enable", "default")
    session = product.wait_for(session_id)

    assert_sound(product, site, session, expected, tmp_path)


def test_connection_to_the_host_cut_in_the_middle_of_a_disk(
    product: Platform, site: LabSite, job: str, tmp_path: Path
) -> None:
    expected = hashes(site, "vm01")
    site.control.fault("nfc-cut", 2, after_bytes=7 * MIB)
    session = product.backup(job)

    assert any(fault.get("fired", 0) > 0 for fault in site.control.faults()), site.control.faults()
    site.control.clear_faults()
    assert_sound(product, site, session, expected, tmp_path)


def test_vcenter_forgets_its_sessions_in_the_middle(
    product: Platform, site: LabSite, job: str, tmp_path: Path
) -> None:
    session_id, expected = in_the_middle(product, site, job)
    site.control.drop_sessions()
    site.control.fault("nfc-cut", 1, after_bytes=MIB)
    site.control.clear_faults()
    session = product.wait_for(session_id)

    assert_sound(product, site, session, expected, tmp_path)


def test_repository_disk_full(product: Platform, site: LabSite, tmp_path: Path) -> None:
    """A clear failure, nothing half done; with room again the same job succeeds."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(small)], check=True)
    try:
        add_vcenter(product, site)
        add_repository(product, small / "repo")
        for number in (1, 2):
            site.guest_write(site.disk("vm01", number), 0, os.urandom(20 * MIB))
        expected = hashes(site, "vm01")
        create_job(product, "nightly", "--vm", "vm01", "--retries", "0")

        failed = product.backup("nightly", result="failed")
        assert "space" in json.dumps(failed) or "full" in json.dumps(failed)
        assert product.json("restore-point", "list", "--vm", "vm01")["items"] == []
        wait_until("no snapshot is left", lambda: operator.snapshot_names(site) == [], 60)

        subprocess.run(["mount", "-o", "remount,size=200m", str(small)], check=True)
        assert_sound(product, site, product.backup("nightly"), expected, tmp_path)
    finally:
        product.stop()
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_snapshot_removal_that_leaves_consolidation(
    product: Platform, site: LabSite, job: str, tmp_path: Path
) -> None:
    expected = hashes(site, "vm01")
    site.control.fault("snapshot-stuck", 1)
    session = product.backup(job)

    assert_sound(product, site, session, expected, tmp_path)
    wait_until(
        "disks are consolidated",
        lambda: not any(vm.consolidation_needed for vm in site.control.vms()),
        60,
    )
    assert all("-0000" not in disk.live_path for disk in site.disks("vm01"))


def test_foreign_snapshots_survive(product: Platform, site: LabSite, job: str, tmp_path: Path) -> None:
    expected = hashes(site, "vm01")
    operator.take_snapshot(site, "vm01", "before the upgrade")
    session = product.backup(job, result="warning")

    assert operator.snapshot_names(site) == ["before the upgrade"]
    assert "change tracking was not switched on" in session["reason"]
    assert_restores(product, "vm01@latest", "vm01", expected, tmp_path)


def test_quiescing_refused_falls_back_as_the_job_says(
    product: Platform, site: LabSite, tmp_path: Path
) -> None:
    connect(product, site, tmp_path / "repo")
    create_job(product, "try", "--vm", "vm01", "--quiesce", "try", "--retries", "0")
    create_job(product, "require", "--vm", "vm01", "--quiesce", "require", "--retries", "0")
    for fault_method in ("CreateSnapshotEx_Task", "CreateSnapshot_Task"):
        site.control.fault(
            "soap-fault", 2, method=fault_method, fault="ApplicationQuiesceFault", as_task_error=True
        )
    tried = product.wait_for(product.start_job("try"))
    site.control.clear_faults()
    assert tried["result"] in {"success", "warning"}, explain(tried)
    assert tried["vms"][0]["consistency"] == "crash-consistent"

    for fault_method in ("CreateSnapshotEx_Task", "CreateSnapshot_Task"):
        site.control.fault(
            "soap-fault", 50, method=fault_method, fault="ApplicationQuiesceFault", as_task_error=True
        )
    required = product.wait_for(product.start_job("require"))
    site.control.clear_faults()
    assert required["result"] == "failed", explain(required)
    assert "quiesc" in json.dumps(required)


def test_snapshot_removed_by_a_person_while_it_is_read(
    product: Platform, site: LabSite, job: str, tmp_path: Path
) -> None:
    """What was read may be of two times: no restore point, and the next run is right."""
    slow(site)
    session_id = product.start_job(job)
    product.wait_for_progress(session_id)
    operator.remove_snapshots(site, "vm01")
    site.control.clear_faults()
    session = product.wait_for(session_id)

    assert session["result"] == "failed", explain(session)
    assert product.json("restore-point", "list", "--vm", "vm01")["items"] == []
    expected = hashes(site, "vm01")
    assert_sound(product, site, product.backup(job), expected, tmp_path)
