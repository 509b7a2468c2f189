"""Exports that are mounted, as the kernel tells of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from transports.base import DatastoreRef
from transports.direct_nfs.mounts import find_mount, nfs_mounts
from transports.machine import Machine

TABLE = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:50 / /mnt/a rw,relatime shared:50 - nfs4 nas1:/vol/a rw,vers=4.1,addr=192.0.2.1
41 22 0:51 / /mnt/with\040space ro,relatime - nfs nas2:/vol/b\040c rw,vers=3,mountaddr=192.0.2.2,addr=192.0.2.2
42 22 0:52 /sub /mnt/bound rw shared:9 master:2 - nfs4 nas3:/vol rw,addr=192.0.2.3
43 22 0:53 / /mnt/six rw - nfs4 [2001:db8::7]:/v6 rw,addr=2001:db8::7
44 22 0:54 / /mnt/top rw - nfs4 nas4:/ rw,addr=127.0.0.4
45 22 0:55 / /mnt/ssh rw - fuse.sshfs nas1:/vol/a rw
46 22 0:56 / /mnt/broken - nfs4
"""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    file = tmp_path / "mountinfo"
    file.write_text(TABLE)
    return Machine(mountinfo_path=str(file))


def datastore(path: str, *hosts: str) -> DatastoreRef:
    return DatastoreRef(name="x", kind="NFS41", nfs_hosts=hosts, nfs_path=path)


def test_only_nfs_is_listed(machine: Machine) -> None:
    assert [str(mount.point) for mount in nfs_mounts(machine)] == [
        "/mnt/a",
        "/mnt/with space",
        "/mnt/bound",
        "/mnt/six",
        "/mnt/top",
    ]


@pytest.mark.parametrize(
    ("export", "host", "point"),
    [
        ("/vol/a", "nas1", "/mnt/a"),
        ("/vol/a/", "NAS1", "/mnt/a"),
        ("/vol/a", "192.0.2.1", "/mnt/a"),
        ("/vol/a/inner", "nas1", "/mnt/a/inner"),
        ("/vol/b c", "nas2", "/mnt/with space"),
        ("/vol/sub", "nas3", "/mnt/bound"),
        ("/vol/sub/x", "nas3", "/mnt/bound/x"),
        ("/v6", "2001:db8::7", "/mnt/six"),
        ("/any/export", "nas4", "/mnt/top/any/export"),
        ("/any/export", "127.0.0.4", "/mnt/top/any/export"),
    ],
)
def test_an_export_is_found_below_its_mount(
    machine: Machine, export: str, host: str, point: str
) -> None:
    found = find_mount(machine, datastore(export, host))
    assert found is not None
    assert found[1] == Path(point)


@pytest.mark.parametrize(
    ("export", "host"),
    [
        ("/vol/a", "127.0.0.9"),
        ("/vol/abc", "nas1"),
        ("/vol", "nas3"),
        ("/vol/other", "nas3"),
        ("", "nas1"),
    ],
)
def test_what_is_not_mounted_is_not_found(machine: Machine, export: str, host: str) -> None:
    assert find_mount(machine, datastore(export, host)) is None


def test_read_only_is_told(machine: Machine) -> None:
    found = find_mount(machine, datastore("/vol/b c", "nas2"))
    assert found is not None
    assert found[0].read_only


def test_a_machine_that_tells_nothing_has_no_mounts(tmp_path: Path) -> None:
    assert nfs_mounts(Machine(mountinfo_path=str(tmp_path / "none"))) == []
