"""What vCenter says of a datastore's storage, as values."""

from __future__ import annotations

from typing import Any

import pytest
from pyVmomi import vim

from transports.base import DatastoreRef, LunExtent
from transports.vsphere.inventory import storage_of


def vmfs(**given: Any) -> Any:
    part = vim.host.ScsiDisk.Partition
    values = {
        "uuid": "5f1c-a",
        "version": "6.82",
        "extent": [part(diskName="naa.1", partition=1), part(diskName="naa.2", partition=3)],
    }
    return vim.host.VmfsDatastoreInfo(name="x", vmfs=vim.host.VmfsVolume(**(values | given)))


def nas(**given: Any) -> Any:
    values = {"remoteHost": "10.0.0.1", "remotePath": "/vol/a"}
    return vim.host.NasDatastoreInfo(name="x", nas=vim.host.NasVolume(**(values | given)))


def test_a_vmfs_datastore_is_its_uuid_and_its_luns_in_order() -> None:
    assert storage_of("fast", "VMFS", vmfs()) == DatastoreRef(
        name="fast",
        kind="VMFS",
        vmfs_uuid="5f1c-a",
        vmfs_version="6.82",
        extents=(LunExtent(lun="naa.1", partition=1), LunExtent(lun="naa.2", partition=3)),
    )


def test_an_nfs_3_datastore_is_its_host_and_export() -> None:
    assert storage_of("bulk", "NFS", nas()) == DatastoreRef(
        name="bulk", kind="NFS", nfs_hosts=("10.0.0.1",), nfs_path="/vol/a"
    )


def test_an_nfs_41_datastore_has_all_its_addresses_once() -> None:
    found = storage_of("bulk", "NFS41", nas(remoteHostNames=["10.0.0.2", "10.0.0.1"]))
    assert found is not None
    assert found.nfs_hosts == ("10.0.0.1", "10.0.0.2")


@pytest.mark.parametrize(
    ("kind", "info"),
    [
        ("vsan", vim.host.VsanDatastoreInfo(name="x")),
        ("VVOL", vim.host.VvolDatastoreInfo(name="x")),
        ("VMFS", None),
        ("VMFS", vmfs(uuid="")),
        ("NFS", vim.host.NasDatastoreInfo(name="x")),
        ("NFS", nas(remotePath="")),
    ],
)
def test_what_the_server_does_not_tell_is_not_made_up(kind: str, info: Any) -> None:
    assert storage_of("x", kind, info) is None
