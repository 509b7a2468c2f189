"""The attribute does not keep the owner of a directory from renaming it. Nothing comes free by that."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from proxy_worker.keeper import Refused
from tests.integration.keeper.rig import START, Rig

SOON, LATE = START + 1, START + 1000


def rename(rig: Rig, old: str, new: str) -> None:
    (rig.directory / old).rename(rig.directory / new)


def test_another_name_of_a_kept_file_shortens_nothing(rig: Rig) -> None:
    rig.keep(rig.put("packs/ab/x"), LATE)
    rename(rig, "packs/ab", "packs/cd")
    with pytest.raises(Refused, match="not kept by this name"):
        rig.keep("packs/cd/x", SOON)
    rig.times.pass_(2)
    rig.keeper.release()
    assert rig.is_immutable("packs/cd/x")


def test_a_file_in_the_place_of_one_that_is_due_is_not_released(rig: Rig) -> None:
    rig.keep(rig.put("packs/ab/x"), LATE)
    rig.keep(rig.put("packs/cd/x"), SOON)
    rename(rig, "packs/cd", "packs/ef")
    rename(rig, "packs/ab", "packs/cd")
    assert rig.keeper.until(str(rig.directory), "packs/cd/x") == 0
    with pytest.raises(Refused, match="not kept by this name"):
        rig.keep("packs/cd/x", SOON)
    rig.times.pass_(2)
    assert rig.keeper.release() == 0
    rig.start()
    assert rig.keeper.release() == 0
    assert rig.is_immutable("packs/cd/x")
    # With the names as they were everything has its own time again.
    rename(rig, "packs/cd", "packs/ab")
    rename(rig, "packs/ef", "packs/cd")
    assert rig.keeper.release() == 1
    assert not rig.is_immutable("packs/cd/x")
    assert rig.is_immutable("packs/ab/x")
    rig.times.pass_(1000)
    assert rig.keeper.release() == 1
    assert not rig.is_immutable("packs/ab/x")


def test_a_second_time_for_the_same_file_counts_when_it_is_later(rig: Rig) -> None:
    """Two names of one file in the journal: what a crash and a number that was used again can leave."""
    rig.keep(rig.put("packs/ab/x"), LATE)
    inode = (rig.directory / "packs/ab/x").stat().st_ino
    rename(rig, "packs/ab", "packs/cd")
    rig.journal.keep(str(rig.directory), "packs/cd/x", SOON, inode)
    rig.times.pass_(2)
    assert rig.keeper.release() == 0
    assert rig.is_immutable("packs/cd/x")
    rig.times.pass_(1000)
    assert rig.keeper.release() == 1
    assert not rig.is_immutable("packs/cd/x")


def test_a_repository_that_root_copied_is_kept_on(rig: Rig) -> None:
    """The copy has other inodes and no attribute."""
    rig.keep(rig.put("packs/ab/x"), LATE)
    rename(rig, "packs", "old")
    shutil.copytree(rig.directory / "old", rig.directory / "packs")
    subprocess.run(["chattr", "-R", "-i", str(rig.directory / "old")], check=True)
    shutil.rmtree(rig.directory / "old")
    rig.start()
    assert rig.is_immutable("packs/ab/x")
    assert rig.keep("packs/ab/x", LATE + 10) == LATE + 10
    rig.times.pass_(1010)
    assert rig.keeper.release() == 1
    assert not rig.is_immutable("packs/ab/x")
