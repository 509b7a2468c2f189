"""The main job through the public command line: back up, change, back up, restore, compare."""

from __future__ import annotations

import json
import os
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from vmhaul_lab.images import DiskPlan
from vmhaul_lab.plan import VmPlan
from vmhaul_lab.site import LabSite

from . import operator
from .platform import Platform, explain, platform
from .setup import (
    REPOSITORY_PASSWORD,
    add_repository,
    add_vcenter,
    assert_restores,
    connect,
    create_job,
    hashes,
)

pytestmark = pytest.mark.lab

MIB = 1 << 20


def tasks(session: dict[str, Any]) -> list[dict[str, Any]]:
    return [task for vm in session["vms"] for task in vm["tasks"]]


@pytest.mark.postgres
def test_backup_increment_and_both_restores(tmp_path: Path, site: LabSite, database_url: str) -> None:
    """Full, guest writes, increment by change tracking; every disk of both points and a whole VM equal."""
    with platform(
        tmp_path / "data", database="" if "sqlite" in database_url else database_url
    ) as product:
        connect(product, site, tmp_path / "repo")
        create_job(product, "nightly", "--all")

        before = hashes(site, "vm01", "vm02")
        full = product.backup("nightly")
        disk = site.disk("vm01", 1)
        site.guest_write(disk, 5 * MIB + 512, os.urandom(3000))
        site.guest_write(disk, 9 * MIB, bytes(MIB))
        after = hashes(site, "vm01", "vm02")
        increment = product.backup("nightly")

        assert {t["read_mode"] for t in tasks(full)} == {"full"}
        assert {t["read_mode"] for t in tasks(increment)} == {"increment"}
        assert sum(t["stats"]["read_bytes"] for t in tasks(increment)) <= 2 * MIB
        for vm in ("vm01", "vm02"):
            assert_restores(product, f"{vm}@2", vm, before, tmp_path)
            assert_restores(product, f"{vm}@1", vm, after, tmp_path)

        product.run("restore", "vm", "vm01@2", "--name", "vm01-restored")
        restored = hashes(site, "vm01-restored")
        assert {n: digest for (_, n), digest in restored.items()} == {
            n: digest for (vm, n), digest in before.items() if vm == "vm01"
        }
        assert operator.snapshot_names(site) == []
        checked = product.run("repository", "check", "main", "--read-data")
        assert checked.returncode == 0


def test_random_writes_against_random_points(product: Platform, site: LabSite, tmp_path: Path) -> None:
    """Many small days; any point of the chain restores as the disk was then."""
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    rng = random.Random(seed)
    connect(product, site, tmp_path / "repo")
    create_job(product, "nightly", "--vm", "vm01", "--keep", "50")
    history: list[dict[tuple[str, int], str]] = []
    for _ in range(8):
        for number in (1, 2):
            disk = site.disk("vm01", number)
            for _ in range(rng.randrange(6)):
                length = rng.choice((1, 512, 4096, 70_000, 2 * MIB))
                offset = rng.randrange(disk.capacity_bytes - length)
                data = bytes(length) if rng.random() < 0.3 else rng.randbytes(length)
                site.guest_write(disk, offset, data)
        if rng.random() < 0.25:
            site.control.power_loss("vm01")
        history.append(hashes(site, "vm01"))
        product.backup("nightly")
    for age in rng.sample(range(1, 9), 4):
        assert_restores(product, f"vm01@{age}", "vm01", history[-age], tmp_path)


def test_lost_tracking_is_a_full_scan_with_its_reason(
    product: Platform, site: LabSite, tmp_path: Path
) -> None:
    connect(product, site, tmp_path / "repo")
    create_job(product, "nightly", "--vm", "vm01")
    product.backup("nightly")

    site.control.power_loss("vm01")
    site.guest_write(site.disk("vm01"), MIB, b"written after the power came back")
    now = hashes(site, "vm01")
    after_power_loss = product.backup("nightly")
    site.guest_write(site.disk("vm01"), 2 * MIB, b"more")
    later = hashes(site, "vm01")
    site.control.fault("cbt-fault", 100, fault_key="cannotGetChanges", vm="vm01")
    after_fault = product.backup("nightly")
    site.control.clear_faults()

    for session in (after_power_loss, after_fault):
        assert {t["read_mode"] for t in tasks(session)} == {"full-scan"}
        assert all(t["read_mode_reason"] for t in tasks(session)), explain(session)
    assert_restores(product, "vm01@2", "vm01", now, tmp_path)
    assert_restores(product, "vm01@1", "vm01", later, tmp_path)


def test_a_disk_added_and_a_disk_grown_between_runs(
    product: Platform, site: LabSite, tmp_path: Path
) -> None:
    connect(product, site, tmp_path / "repo")
    create_job(product, "nightly", "--vm", "vm01")
    before = hashes(site, "vm01")
    product.backup("nightly")

    first = site.disk("vm01", 1)
    operator.grow_disk(site, "vm01", first.key, first.capacity_bytes + 5 * MIB)
    operator.add_disk(site, "vm01", 8 * MIB)
    assert len(site.disks("vm01")) == 3
    site.guest_write(site.disk("vm01", 1), first.capacity_bytes + MIB, b"in the new part")
    site.guest_write(site.disk("vm01", 3), 3 * MIB, b"on the new disk")
    after = hashes(site, "vm01")
    session = product.backup("nightly")

    by_key = {task["disk_key"]: task for task in tasks(session)}
    assert by_key[first.key]["read_mode"] == "full-scan"
    assert by_key[site.disk("vm01", 2).key]["read_mode"] == "increment"
    assert by_key[site.disk("vm01", 3).key]["read_mode"] == "full"
    assert_restores(product, "vm01@1", "vm01", after, tmp_path)
    assert_restores(product, "vm01@2", "vm01", before, tmp_path)


def test_a_vm_deleted_while_in_the_job(product: Platform, site: LabSite, tmp_path: Path) -> None:
    connect(product, site, tmp_path / "repo")
    create_job(product, "nightly", "--vm", "vm01", "--vm", "vm02", "--retries", "0")
    product.backup("nightly")
    operator.delete_vm(site, "vm02")

    gone_before = product.backup("nightly", result="failed")
    results = {vm["name"]: vm["result"] for vm in gone_before["vms"]}
    assert results == {"vm01": "success", "vm02": "failed"}
    assert "vm02" in gone_before["reason"]

    now = hashes(site, "vm01")
    site.control.fault("nfc-delay", 100_000, delay_s=1.5)
    session_id = product.start_job("nightly", "--full")
    product.wait_for_progress(session_id)
    operator.unregister_vm(
        site, "vm01"
    )  # its files are in use: deleting them is refused, as on vSphere
    site.control.clear_faults()
    session = product.wait_for(session_id)

    # The host goes on serving an open disk, so all bytes may come through: then the point is good. If
    # they did not, there is no point, and a reason.
    vm = next(vm for vm in session["vms"] if vm["name"] == "vm01")
    points = product.json("restore-point", "list", "--vm", "vm01")["items"]
    if vm["result"] == "failed":
        assert vm["reason"], explain(session)
    assert len(points) == (2 if vm["result"] == "failed" else 3)
    assert_restores(product, "vm01@latest", "vm01", now, tmp_path)


def test_retention_keeps_the_last_n(product: Platform, site: LabSite, tmp_path: Path) -> None:
    connect(product, site, tmp_path / "repo")
    create_job(product, "nightly", "--vm", "vm01", "--keep", "2")
    history = []
    for number in range(4):
        site.guest_write(site.disk("vm01"), number * MIB, os.urandom(MIB))
        history.append(hashes(site, "vm01"))
        product.backup("nightly")

    points = product.json("restore-point", "list", "--vm", "vm01")["items"]
    assert len(points) == 2
    assert_restores(product, "vm01@1", "vm01", history[-1], tmp_path)
    assert_restores(product, "vm01@2", "vm01", history[-2], tmp_path)


def test_wrong_passwords_and_certificates_are_said(
    product: Platform, site: LabSite, tmp_path: Path
) -> None:
    wrong = product.run(
        "vcenter", "add", "lab", site.address, "--user", site.user,
        "--password-stdin", "--thumbprint", site.thumbprint_sha256, stdin="not it", check=False,
    )  # fmt: skip
    assert wrong.returncode == 1
    assert "password" in wrong.stderr
    assert "not it" not in wrong.stderr + wrong.stdout

    other = product.run(
        "vcenter", "add", "lab", site.address, "--user", site.user,
        "--password-stdin", "--thumbprint", ":".join(["AB"] * 32), stdin=site.password, check=False,
    )  # fmt: skip
    assert other.returncode == 1
    assert "thumbprint" in other.stderr or "certificate" in other.stderr

    add_vcenter(product, site)
    add_repository(product, tmp_path / "repo")
    product.run("repository", "remove", "main")
    refused = product.run(
        "repository", "add", "again", str(tmp_path / "repo"), "--import", "--password-stdin",
        stdin="wrong", check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    assert "password" in refused.stderr


def test_the_catalogue_comes_back_from_the_repository(
    product: Platform, site: LabSite, tmp_path: Path
) -> None:
    """A second installation, which knows nothing, restores from the repository and its password alone."""
    connect(product, site, tmp_path / "repo")
    create_job(product, "nightly", "--vm", "vm01")
    expected = hashes(site, "vm01")
    product.backup("nightly")
    with platform(tmp_path / "elsewhere") as other:
        other.run(
            "repository", "add", "found", str(tmp_path / "repo"), "--import", "--password-stdin",
            stdin=REPOSITORY_PASSWORD,
        )  # fmt: skip
        assert_restores(other, "vm01@latest", "vm01", expected, tmp_path)


def test_exclusions_and_the_plan(product: Platform, site: LabSite, tmp_path: Path) -> None:
    connect(product, site, tmp_path / "repo")
    create_job(
        product, "some", "--vm", "vm*", "--exclude-vm", "vm02", "--exclude-disk", "vm01:Hard disk 2"
    )
    plan = product.json("job", "plan", "some")
    text = json.dumps(plan)
    assert "vm01" in text
    session = product.backup("some")
    assert [vm["name"] for vm in session["vms"]] == ["vm01"]
    assert [task["label"] for task in tasks(session)] == ["Hard disk 1"]


def test_a_disk_of_two_tebibytes(tmp_path: Path, labvc_binary: Path) -> None:
    """Nearly empty: only what is allocated is read; unchanged: nothing is; memory is that of any disk."""
    vms = (
        VmPlan(name="big01", disks=(DiskPlan(label="disk0", capacity_bytes=2 << 40, layout="empty"),)),
    )
    with (
        LabSite.quick(tmp_path / "site", vms, binary=labvc_binary) as site,
        platform(tmp_path / "data") as product,
    ):
        written = os.urandom(3 * MIB)
        site.guest_write(site.disk("big01"), 1_600_000 * MIB, written)
        connect(product, site, tmp_path / "repo")
        create_job(product, "nightly", "--all")

        site.control.fault("nfc-delay", 3, delay_s=2)
        session_id = product.start_job("nightly")
        peak_bytes = 0
        while product.session(session_id)["state"] != "finished":
            for mover in product.processes("mover_process"):
                with suppress(psutil.NoSuchProcess):
                    peak_bytes = max(peak_bytes, mover.memory_info().rss)
        [full] = tasks(product.wait_for(session_id))
        [unchanged] = tasks(product.backup("nightly"))
        product.run("restore", "vm", "big01@latest", "--name", "big01-restored")

        assert full["stats"]["read_bytes"] <= 8 * MIB
        assert 0 < peak_bytes < 256 * MIB
        assert unchanged["read_mode"] == "increment"
        assert unchanged["stats"]["read_bytes"] == 0
        restored = site.guest_read(site.disk("big01-restored"), 1_600_000 * MIB, 3 * MIB)
        assert restored == written
