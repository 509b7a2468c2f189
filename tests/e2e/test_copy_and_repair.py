"""Backup copies and self-repair through the public command line."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from vmhaul_lab.site import LabSite

from .platform import Platform, explain, wait_until
from .setup import REPOSITORY_PASSWORD, assert_restores, connect, create_job, hashes

pytestmark = pytest.mark.lab

MIB = 1 << 20


def add_offsite(product: Platform, path: Path) -> None:
    product.run(
        "repository", "add", "offsite", str(path), "--password-stdin", "--block-size", "256K",
        stdin="another " + REPOSITORY_PASSWORD,
    )  # fmt: skip
    product.run(
        "job", "create-copy", "second", "--from", "main", "--to", "offsite",
        "--after-backup", "--compression", "high",
    )  # fmt: skip


def wait_for_copies(product: Platform, count: int) -> None:
    """Until the copy job, which follows the backups by itself, has copied so many points."""

    def copied() -> bool:
        sessions = product.ask("/sessions?kind=copy")["items"]
        assert all(one["result"] in (None, "success") for one in sessions), explain(sessions[0])
        points = product.ask("/restore-points?repository=offsite")["items"]
        return len(points) == count and all(one["state"] == "finished" for one in sessions)

    wait_until(f"{count} points are copied", copied, 120)


def test_a_vm_comes_back_from_the_copy_when_the_repository_is_lost(
    product: Platform, site: LabSite, tmp_path: Path
) -> None:
    connect(product, site, tmp_path / "repo")
    add_offsite(product, tmp_path / "offsite")
    create_job(product, "nightly", "--vm", "vm01")
    assert "copy from main" in product.run("job", "show", "second").stdout
    assert "after each backup" in product.run("job", "list").stdout
    before = hashes(site, "vm01")
    product.backup("nightly")
    wait_for_copies(product, 1)
    assert "Nothing new to copy" in product.run("job", "plan", "second").stdout
    site.guest_write(site.disk("vm01", 1), 3 * MIB + 512, os.urandom(200_000))
    after = hashes(site, "vm01")
    product.backup("nightly")
    wait_for_copies(product, 2)
    session = product.session(product.ask("/sessions?kind=copy")["items"][0]["id"])
    tasks = [task for vm in session["vms"] for task in vm["tasks"]]
    assert {task["read_mode"] for task in tasks} == {"increment"}
    assert sum(task["stats"]["read_bytes"] for task in tasks) <= 3 * MIB

    shutil.rmtree(tmp_path / "repo")
    newest, oldest = product.ask("/restore-points?repository=offsite")["items"]
    assert newest["copy_of"]
    assert_restores(product, oldest["id"], "vm01", before, tmp_path)
    assert_restores(product, newest["id"], "vm01", after, tmp_path)
    product.run("restore", "vm", newest["id"], "--name", "from-the-copy")
    restored = hashes(site, "from-the-copy")
    assert sorted(restored.values()) == sorted(after.values())


def flip_bits(repository: Path, rng: random.Random, count: int) -> None:
    packs = sorted((repository / "packs").glob("*/*"))
    for _ in range(count):
        pack = rng.choice(packs)
        with pack.open("r+b") as file:
            at = rng.randrange(100, pack.stat().st_size // 2)
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 4]))


def test_flipped_bits_are_repaired_from_the_copy(
    product: Platform, site: LabSite, tmp_path: Path
) -> None:
    connect(product, site, tmp_path / "repo")
    add_offsite(product, tmp_path / "offsite")
    create_job(product, "nightly", "--vm", "vm01")
    before = hashes(site, "vm01")
    product.backup("nightly")
    wait_for_copies(product, 1)

    flip_bits(tmp_path / "repo", random.Random(11), 5)
    found = product.run("repository", "check", "main", "--read-data", "--json", check=False)
    assert found.returncode != 0
    assert "damaged" in found.stdout
    # The check may have begun a repair by itself; that one has to be over first.
    wait_until(
        "no repair is under way",
        lambda: all(
            one["state"] == "finished" for one in product.ask("/sessions?kind=repair")["items"]
        ),
    )
    repaired = product.json("repository", "repair", "main")
    assert repaired["result"] == "success", explain(repaired)
    reports = [
        product.session(one["id"])["report"] for one in product.ask("/sessions?kind=repair")["items"]
    ]
    assert sum(report["repaired_from"].get("offsite", 0) for report in reports) >= 1
    assert product.run("repository", "check", "main", "--read-data").returncode == 0
    point = product.ask("/restore-points?repository=main")["items"][0]
    assert_restores(product, point["id"], "vm01", before, tmp_path)
    # A chain goes on from the point that was repaired.
    site.guest_write(site.disk("vm01", 1), 5 * MIB, os.urandom(1000))
    after = hashes(site, "vm01")
    product.backup("nightly")
    point = product.ask("/restore-points?repository=main")["items"][0]
    assert_restores(product, point["id"], "vm01", after, tmp_path)


def test_the_live_disk_repairs_what_no_copy_has(
    product: Platform, site: LabSite, tmp_path: Path
) -> None:
    connect(product, site, tmp_path / "repo")
    create_job(product, "nightly", "--vm", "vm01")
    before = hashes(site, "vm01")
    product.backup("nightly")
    old = product.ask("/restore-points")["items"][0]["id"]

    flip_bits(tmp_path / "repo", random.Random(5), 3)
    lost = product.json("repository", "repair", "main", "--from-live", check=False)
    assert lost["result"] == "failed"
    assert "guest extent" in lost["reason"]
    backups = product.ask("/sessions?kind=backup")["items"]
    again = next(one for one in backups if one["options"]["trigger"] == "repair")
    assert product.wait_for(again["id"])["result"] == "success"
    mended = product.json("repository", "repair", "main")
    assert mended["result"] == "success", explain(mended)
    assert_restores(product, old, "vm01", before, tmp_path)
    assert product.run("repository", "check", "main", "--read-data").returncode == 0
