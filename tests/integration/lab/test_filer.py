"""Snapshots of an NFS datastore are directories of its export, made by commands as on btrfs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from vmhaul_lab import filer, reflink
from vmhaul_lab.errors import LabError
from vmhaul_lab.plan import DatastorePlan, quick_vms
from vmhaul_lab.site import LabSite
from vmhaul_lab.storage import SharedBlocks

from tests.integration.lab.nfs_client import read_file

pytestmark = pytest.mark.lab


def test_clients_read_snapshots_through_the_same_export(tmp_path: Path, labvc_binary: Path) -> None:
    store = DatastorePlan(name="nas", kind="NFS41", served=True, snapshots=True)
    site = LabSite.quick(tmp_path / "site", quick_vms(1), binary=labvc_binary, datastores=[store])
    with site:
        snapshots = site.filer("nas")
        disk = site.disk("vm01")
        path = f"vm01/{disk.live_file.name}"
        frozen = disk.live_file.read_bytes()
        place = snapshots.create("one")
        assert reflink.physical_ranges(place / path) == reflink.physical_ranges(disk.live_file)
        site.guest_write(disk, 4096, b"later")
        snapshots.create("two")

        def read(name: str) -> bytes:
            return read_file(site.nfs_host, "/vol/nas", name, version=4)

        assert read(f"/.snapshots/one/{path}") == frozen
        assert read(f"/.snapshots/two/{path}") == read(f"/{path}") == disk.live_file.read_bytes()
        assert not (place.parent / "two" / ".snapshots").exists()
        snapshots.delete("one")
        assert snapshots.names() == ["two"]


def test_the_commands_of_btrfs_make_and_remove_them(tmp_path: Path) -> None:
    with SharedBlocks(directory=tmp_path / "storage", size_bytes=1 << 30) as storage:
        folder = storage.directory / "export"
        (folder / "vm").mkdir(parents=True)
        (folder / "vm" / "disk").write_bytes(b"x" * 100_000)
        (folder / ".snapshots").mkdir()
        snapshots = filer.Filer(folder=folder)
        program = snapshots.commands(tmp_path / "bin") / "btrfs"

        def btrfs(*words: str | Path) -> int:
            done = subprocess.run([program, *words], check=False, capture_output=True, timeout=60)
            return done.returncode

        one = folder / ".snapshots" / "one"
        assert btrfs("subvolume", "snapshot", "-r", folder, one) == 0
        assert (one / "vm" / "disk").read_bytes() == b"x" * 100_000
        assert btrfs("subvolume", "snapshot", "-r", folder, one) == 1
        assert btrfs("subvolume", "show", one) == 0
        assert btrfs("subvolume", "delete", one) == 0
        assert btrfs("subvolume", "delete", one) == 1
        assert btrfs("--version") == 0
        assert btrfs("balance", "start", folder) == 1
        assert snapshots.names() == []


def test_a_snapshot_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    with SharedBlocks(directory=tmp_path / "storage", size_bytes=1 << 30) as storage:
        folder = storage.directory / "export"
        folder.mkdir(parents=True)
        (folder / "disk").write_bytes(b"x" * 100_000)
        (folder / "gone").symlink_to(folder / "was-renamed-meanwhile")
        snapshots = filer.Filer(folder=folder)
        with pytest.raises(LabError, match="could not be copied"):
            snapshots.create("one")
        assert snapshots.names() == []
        (folder / "gone").unlink()
        snapshots.create("one")
        assert snapshots.names() == ["one"]


def test_without_shared_blocks_nothing_is_copied_in_silence(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "file").write_bytes(b"x")
    with pytest.raises(LabError, match="shares no blocks"):
        filer.Filer(folder=tmp_path / "export").create("one")
    assert filer.Filer(folder=tmp_path / "export").names() == []
