"""What vmhaul-keeper makes immutable, what nobody can make it do, and what a crash leaves. Runs as root, as the
keeper does.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pipeline.errors import ObjectRetainedError
from pipeline.storage.immutable import is_immutable
from proxy_worker.keeper import DAY_S, Missing, Refused, set_immutable
from tests.integration.keeper.rig import START, Rig

# ---- keeping and releasing -----------------------------------------------------------------------


def test_what_is_kept_cannot_be_deleted_until_its_time_is_over(rig: Rig) -> None:
    name = rig.put("packs/ab/abcd")
    assert rig.keep(name, START + 100) == START + 100
    for change in (
        lambda: rig.storage.delete(name),
        lambda: rig.storage.replace(name, b"other"),
    ):
        with pytest.raises(ObjectRetainedError, match="immutable"):
            change()
    with pytest.raises(PermissionError):
        (rig.directory / name).open("r+b")
    rig.times.pass_(99)
    assert rig.keeper.release() == 0
    assert rig.storage.read(name) == b"content"
    rig.times.pass_(1)
    assert rig.keeper.release() == 1
    rig.storage.delete(name)
    assert list(rig.storage.list("")) == []


def test_a_time_is_never_shortened(rig: Rig) -> None:
    name = rig.put("packs/ab/abcd")
    rig.keep(name, START + 100)
    assert rig.keep(name, START + 50) == START + 100
    assert rig.keep(name, START + 200) == START + 200
    assert rig.keep(name, 0) == START + 200
    rig.times.pass_(150)
    assert rig.keeper.release() == 0
    assert rig.is_immutable(name)


def test_nothing_is_kept_for_longer_than_allowed(rig: Rig) -> None:
    name = rig.put("packs/ab/abcd")
    for until in (START + 3661 * DAY_S, float("inf")):
        with pytest.raises(Refused, match="longest"):
            rig.keep(name, until)
    assert not rig.is_immutable(name)


# ---- what may be kept ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../outside",
        "packs/../../outside",
        "packs/./one",
        "packs//one",
        "packs/one/",
        "tmp/one",
        "work/one",
        "doomed/one",
        "Packs/one",
        "packs/one\n",
        "packs/\x00",
        "a/b/c/d/e",
        ".",
        "packs",
    ],
)
def test_names_that_are_refused(rig: Rig, name: str) -> None:
    rig.put("packs/one")
    (rig.directory / "outside").write_bytes(b"")
    with pytest.raises((Refused, Missing)):
        rig.keep(name, START + 10)
    assert rig.journal.kept() == []


def test_other_directories_are_refused(rig: Rig, tmp_path: Path) -> None:
    rig.put("packs/one")
    for root in (str(tmp_path), f"{rig.directory}/", f"{rig.directory}/packs", "/", ""):
        with pytest.raises(Refused, match="no repository"):
            rig.keeper.keep(root, "packs/one", START + 10)


def test_links_lead_nowhere(rig: Rig, mounted: Path) -> None:
    rig.put("packs/one")
    outside = mounted / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "file").write_bytes(b"")
    (rig.directory / "packs" / "soft").symlink_to(outside / "file")
    (rig.directory / "links").symlink_to(outside)
    os.link(outside / "file", rig.directory / "packs" / "hard")
    os.mkfifo(rig.directory / "packs" / "pipe")
    (rig.directory / "packs" / "directory").mkdir()
    for name in ("packs/soft", "links/file", "packs/hard", "packs/pipe", "packs/directory"):
        with pytest.raises(Refused):
            rig.keep(name, START + 10)
    with (outside / "file").open("rb") as file:
        assert not is_immutable(file.fileno())
    assert rig.journal.kept() == []


def test_a_root_that_became_a_link_is_refused(rig: Rig) -> None:
    rig.put("packs/one")
    rig.directory.rename(rig.directory.with_name("moved"))
    rig.directory.symlink_to(rig.directory.with_name("moved"))
    with pytest.raises(Refused):
        rig.keep("packs/one", START + 10)


def test_another_file_system_below_is_not_entered(rig: Rig) -> None:
    place = rig.directory / "packs"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=True)
    try:
        (place / "one").write_bytes(b"")
        with pytest.raises(Refused, match="plain file"):
            rig.keep("packs/one", START + 10)
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_file_system_without_the_attribute_is_said(tmp_path: Path) -> None:
    place = tmp_path / "ramfs"
    place.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", str(place)], check=True)
    try:
        rig = Rig(place, tmp_path / "state")
        rig.put("packs/one")
        with pytest.raises(Refused, match="no immutable attribute"):
            rig.keep("packs/one", START + 10)
        assert rig.journal.kept() == []
        rig.storage.close()
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_what_is_not_there_is_missing(rig: Rig) -> None:
    with pytest.raises(Missing):
        rig.keep("packs/none", START + 10)


# ---- crashes -------------------------------------------------------------------------------------


class Died(BaseException):
    pass


@pytest.mark.parametrize("extended", [False, True])
def test_death_between_journal_and_attribute(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, extended: bool
) -> None:
    name = rig.put("packs/one")
    if extended:
        rig.keep(name, START + 50)

    def die(_fd: int, *, on: bool) -> None:
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr("proxy_worker.keeper.set_immutable", die)
        with pytest.raises(Died):
            rig.keep(name, START + 100)
    assert rig.is_immutable(name) is extended
    rig.start()
    assert rig.is_immutable(name)
    rig.times.pass_(99)
    assert rig.keeper.release() == 0


def test_death_between_release_and_journal(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    name = rig.put("packs/one")
    rig.keep(name, START + 100)
    rig.times.pass_(100)

    def release_and_die(fd: int, *, on: bool) -> None:
        set_immutable(fd, on=on)
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr("proxy_worker.keeper.set_immutable", release_and_die)
        with pytest.raises(Died):
            rig.keeper.release()
    rig.start()
    assert rig.keeper.release() == 1
    rig.storage.delete(name)


def test_what_root_removed_does_not_stop_the_rest(rig: Rig) -> None:
    for name in ("packs/one", "packs/two"):
        rig.keep(rig.put(name), START + 10)
    rig.put("vmhaul-repository.json")
    subprocess.run(["chattr", "-i", str(rig.directory / "packs/one")], check=True)
    rig.storage.delete("packs/one")
    rig.times.pass_(10)
    assert rig.keeper.release() == 2
    assert not rig.is_immutable("packs/two")


def test_nothing_is_forgotten_while_the_file_system_is_away(rig: Rig) -> None:
    rig.keep(rig.put("packs/one"), START + 10)
    rig.times.pass_(10)
    away = rig.directory.with_name(f"{rig.directory.name}-away")
    rig.directory.rename(away)
    assert rig.keeper.release() == 0
    rig.directory.mkdir()  # the empty mount point
    assert rig.keeper.release() == 0
    rig.directory.rmdir()
    away.rename(rig.directory)
    assert rig.keeper.release() == 1
    assert not rig.is_immutable("packs/one")


def test_a_directory_renamed_away_keeps_its_objects(rig: Rig) -> None:
    """What the attribute does not prevent: the owner of a directory may rename it. Nothing is lost by it."""
    rig.keep(rig.put("packs/one"), START + 100)
    (rig.directory / "packs").rename(rig.directory / "hidden")
    with pytest.raises(PermissionError):
        (rig.directory / "hidden" / "one").unlink()
