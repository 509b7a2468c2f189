from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.storage.mounts import is_network_mount


@pytest.mark.parametrize(
    ("kind", "is_network"),
    [("nfs4", True), ("cifs", True), ("fuse.sshfs", True), ("ext4", False), ("fuseblk", False)],
)
def test_the_kind_of_file_system_decides(tmp_path: Path, kind: str, is_network: bool) -> None:
    device = tmp_path.stat().st_dev
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "21 1 0:999999 / /elsewhere rw - nfs4 host:/x rw\n"
        f"36 35 {os.major(device)}:{os.minor(device)} / /mnt rw,noatime master:1 shared:2 - {kind} what rw\n"
    )
    assert is_network_mount(tmp_path, mounts) is is_network


def test_what_cannot_be_told_is_taken_for_local(tmp_path: Path) -> None:
    assert not is_network_mount(tmp_path, tmp_path / "none")
    assert not is_network_mount(tmp_path / "none")
