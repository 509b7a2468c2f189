from __future__ import annotations

from dataclasses import replace

import pytest

from transports.base import DatastoreRef, DiskRef, LunExtent
from transports.storage_systems.base import Exposed, Volume, VolumeKind
from transports.storage_systems.matching import exposed_disk, volumes_below


def lun(name: str, naa: str) -> Volume:
    return Volume(id=name, name=name, kind=VolumeKind.LUN, size_bytes=1, lun=naa)


def export(path: str, *hosts: str) -> Volume:
    return Volume(id=path, name=path, kind=VolumeKind.NFS, size_bytes=1, exports=(path,), hosts=hosts)


def vmfs(*luns: str) -> DatastoreRef:
    extents = tuple(LunExtent(lun=one, partition=n + 1) for n, one in enumerate(luns))
    return DatastoreRef(name="ds", kind="VMFS", vmfs_uuid="u", extents=extents)


def nfs(path: str, *hosts: str, kind: str = "NFS") -> DatastoreRef:
    return DatastoreRef(name="ds", kind=kind, nfs_hosts=hosts, nfs_path=path)


def disk(storage: DatastoreRef | None) -> DiskRef:
    return DiskRef(
        vm_moref="vm-1", vm_name="db", disk_key=1, path="[ds] db/db.vmdk", capacity_bytes=512,
        datastore="ds", snapshot_moref="snapshot-1", storage=storage,
    )  # fmt: skip


A, B = lun("a", "naa.600a"), lun("b", "naa.600b")


@pytest.mark.parametrize(
    ("storage", "found"),
    [
        (vmfs("naa.600a"), ["a"]),
        (vmfs("NAA.600B", "naa.600a"), ["b", "a"]),
        (vmfs("naa.600a", "naa.600a"), ["a"]),
        (vmfs("naa.600a", "naa.600c"), []),
        (vmfs(), []),
        (nfs("/tank/vm", "filer"), ["/tank/vm"]),
        (nfs("/tank/vm/deep/er", "Filer."), ["/tank/vm"]),
        (nfs("/tank/other", "filer", kind="NFS41"), ["/tank"]),
        (nfs("/tank/vmware", "filer"), ["/tank"]),
        (nfs("/tank/vm", "another"), []),
        (nfs("/tank/v6", "2001:db8:0::1"), ["/tank/v6"]),
        (nfs("/elsewhere", "filer"), []),
        (DatastoreRef(name="ds", kind="vsan"), []),
        (None, []),
    ],
)
def test_which_volumes_hold_a_datastore(storage: DatastoreRef | None, found: list[str]) -> None:
    volumes = [
        A, B, export("/tank", "filer"), export("/tank/vm", "filer"), export("/tank/v6", "[2001:db8::1]"),
    ]  # fmt: skip
    assert [volume.id for volume in volumes_below(storage, volumes)] == found


def test_a_disk_on_luns_is_found_on_their_clones() -> None:
    before = disk(vmfs("naa.600b", "naa.600a"))
    shown = [Exposed(volume_id="a", lun="naa.c1"), Exposed(volume_id="b", lun="naa.c2")]
    after = exposed_disk(before, [B, A], shown)
    assert after.storage is not None
    assert after.storage.extents == (
        LunExtent(lun="naa.c2", partition=1),
        LunExtent(lun="naa.c1", partition=2),
    )
    assert (after.path, after.storage.vmfs_uuid, after.snapshot_moref) == (before.path, "u", None)


@pytest.mark.parametrize(
    ("path", "file"),
    [("/tank/vm", "[ds] .snap/x/db/db.vmdk"), ("/tank/vm/a/b", "[ds] .snap/x/a/b/db/db.vmdk")],
)
def test_a_disk_on_an_export_is_found_in_the_snapshot_s_directory(path: str, file: str) -> None:
    volume = export("/tank/vm", "filer")
    after = exposed_disk(
        disk(nfs(path, "filer")), [volume], [Exposed(volume_id=volume.id, directory=".snap/x")]
    )
    assert after.storage is not None
    assert (after.storage.nfs_path, after.path) == ("/tank/vm", file)


def test_a_disk_whose_storage_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="not known"):
        exposed_disk(replace(disk(None)), [A], [Exposed(volume_id="a", lun="naa.c")])
