"""A repository over two directories, through the command line: sealed, in maintenance, evacuated, removed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from vmhaul_lab.site import LabSite

from .platform import Platform
from .setup import assert_restores, connect, create_job, hashes

pytestmark = pytest.mark.lab

MIB = 1 << 20


def packs(directory: Path) -> int:
    return sum(1 for path in (directory / "packs").rglob("*") if path.is_file())


def first_disk(site: LabSite) -> dict[tuple[str, int], str]:
    return {key: digest for key, digest in hashes(site, "vm01").items() if key == ("vm01", 1)}


def states(answer: dict[str, Any]) -> dict[str, str]:
    return {extent["name"]: extent["state"] for extent in answer["extents"]}


@pytest.mark.timeout(900)  # some twenty commands, each a process; for a machine that is busy
def test_two_directories_as_one_repository(product: Platform, site: LabSite, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    connect(product, site, old)
    create_job(product, "nightly", "--vm", "vm01")
    before = first_disk(site)
    product.backup("nightly")
    assert states(product.json("repository", "extent", "list", "main")) == {"first": "active"}

    added = product.json("repository", "extent", "add", "main", "new", str(new), "--first", "old")
    assert states(added) == {"old": "active", "new": "active"}
    sealed = product.json("repository", "extent", "seal", "main", "old")
    assert states(sealed) == {"old": "sealed", "new": "active"}
    refused = product.run("repository", "extent", "seal", "main", "new", check=False)
    assert refused.returncode != 0
    assert "last that is active" in refused.stderr

    site.guest_write(site.disk("vm01", 1), 5 * MIB, os.urandom(3 * MIB))
    after = first_disk(site)
    in_old = packs(old)
    product.backup("nightly")
    assert packs(old) == in_old
    assert packs(new) > 0
    assert_restores(product, "vm01@1", "vm01", after, tmp_path)

    away = product.json("repository", "extent", "maintenance", "main", "old")
    assert states(away) == {"old": "maintenance", "new": "active"}
    hidden = old.with_name("unmounted")
    old.rename(hidden)
    restore = ("restore", "disk", "vm01@2", "--disk", "1", "--to", str(tmp_path / "no.raw"))
    failed = product.run(*restore, check=False)
    assert failed.returncode != 0
    assert "'old', which is in maintenance" in failed.stdout + failed.stderr
    pruned = product.run("repository", "prune", "main", check=False)
    assert "extent old is in maintenance" in pruned.stdout + pruned.stderr

    hidden.rename(old)
    back = product.json("repository", "extent", "activate", "main", "old")
    assert states(back) == {"old": "active", "new": "active"}

    product.run("repository", "extent", "evacuate", "main", "old")
    assert packs(old) == 0
    removed = product.json("repository", "extent", "remove", "main", "old")
    assert states(removed) == {"new": "active"}
    old.rename(tmp_path / "gone")
    product.run("repository", "check", "main", "--read-data")
    assert_restores(product, "vm01@2", "vm01", before, tmp_path)

    # What the database forgets, the location tells again.
    [repository] = product.json("repository", "list")["items"]
    assert repository["location"].startswith("scale-out:")
