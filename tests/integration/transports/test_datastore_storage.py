"""The storage below datastores, as the simulated vCenter tells of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from vmhaul_lab.plan import DatastorePlan, SitePlan, quick_vms
from vmhaul_lab.site import LabSite

from transports.base import DatastoreRef, LunExtent
from transports.vsphere import connect
from transports.vsphere.model import Endpoint, Login, Secret

pytestmark = pytest.mark.lab

EXTENTS = [
    {"disk_name": "naa.600a0b1", "partition": 1},
    {"disk_name": "eui.00a0", "partition": 2},
]


def test_inventory_tells_where_each_datastore_lies(tmp_path: Path, labvc_binary: Path) -> None:
    plan = SitePlan(
        vms=quick_vms(1),
        datastores=(
            DatastorePlan(
                name="fast",
                storage={"vmfs_uuid": "65c0-1", "vmfs_version": "5.82", "extents": EXTENTS},
            ),
            DatastorePlan(name="three", kind="NFS", storage={"remote_host": "n1", "remote_path": "/v"}),
            DatastorePlan(
                name="four", kind="NFS41", storage={"remote_hosts": ["n1", "n2"], "remote_path": "/w"}
            ),
        ),
    )
    with LabSite(tmp_path / "site", plan, binary=labvc_binary) as site:
        client = connect(
            Endpoint(
                host=site.vcenter_host, port=site.vcenter_port, thumbprint_sha256=site.thumbprint_sha256
            ),
            Login(username=site.user, password=Secret(site.password)),
            clock=time.time,
        )
        try:
            found = {store.name: store.storage for store in client.inventory().datastores}
            one = client.datastore("four", plan.datacenter).storage
        finally:
            client.close()
    assert found == {
        "fast": DatastoreRef(
            name="fast",
            kind="VMFS",
            vmfs_uuid="65c0-1",
            vmfs_version="5.82",
            extents=(
                LunExtent(lun="naa.600a0b1", partition=1),
                LunExtent(lun="eui.00a0", partition=2),
            ),
        ),
        "three": DatastoreRef(name="three", kind="NFS", nfs_hosts=("n1",), nfs_path="/v"),
        "four": DatastoreRef(name="four", kind="NFS41", nfs_hosts=("n1", "n2"), nfs_path="/w"),
    }
    assert one == found["four"]
