"""The lab's disk array: the product's driver takes snapshots of LUNs, and a proxy reads their clones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from vmhaul_lab import reflink
from vmhaul_lab.site import LabSite

from tests.support.lab_san import PROXY, digest_by_san, frozen_disks, san_site, storage_of, vm_plan
from tests.support.vmfs_readers import file_sha256
from transports.base import LunExtent
from transports.errors import PeerIdentityError, TransientTransportError
from transports.storage_systems import flasharray
from transports.storage_systems.base import StorageAccess, StorageSystem, exposure_name, snapshot_name
from transports.vsphere.model import Secret

pytestmark = pytest.mark.lab
MIB = 1 << 20


def connected(site: LabSite, *, thumbprint: str = "") -> StorageSystem:
    array = site.array
    return flasharray.DRIVER.connect(
        StorageAccess(
            address=array.address,
            identity=thumbprint or array.thumbprint,
            secrets={"api_token": Secret(array.api_token)},
        )
    )


def test_a_clone_of_a_snapshot_shows_the_frozen_disks_after_the_vm_snapshot_is_gone(
    tmp_path: Path, labvc_binary: Path
) -> None:
    with san_site(tmp_path, labvc_binary, [vm_plan("vm01")], array=True) as (site, shown, client):
        array, system = site.array, connected(site)
        (volume,) = system.volumes()
        assert volume.lun == shown.naas[0]
        live = [file_sha256(disk.live_file) for disk in site.disks("vm01")]
        vm, vm_snapshot, disks = frozen_disks(client, "vm01")
        name = snapshot_name(str(uuid4()), str(uuid4()))
        system.create_snapshot(name, [volume.id])
        client.remove_snapshot(vm, vm_snapshot)
        for disk in site.disks("vm01"):
            site.guest_write(disk, 4 * MIB, b"later" * 100_000)
        shown.render()

        exposure = exposure_name(name, "one")
        (exposed,) = system.expose(exposure, [volume.id], PROXY)
        assert exposed.lun not in shown.naas
        (seen,) = [item for item in site.proxy(PROXY).devices() if item["wwid"] == exposed.lun]
        clone = Path(str(seen["backing"]))
        # Nothing was copied: whatever the clone holds, the snapshot has at the same place on the disk.
        (frozen,) = [path for path in clone.parent.iterdir() if name in path.name and path != clone]
        assert reflink.physical_ranges(clone) == reflink.physical_ranges(frozen)

        # The VMFS uuid is the same, the LUN is not: it is found by either.
        storage = storage_of(client)
        by_name = replace(storage, extents=(LunExtent(lun=exposed.lun, partition=1),))
        assert [digest_by_san(site, replace(disk, storage=by_name)) for disk in disks] == live

        system.hide(exposure)
        assert exposed.lun not in {item["wwid"] for item in site.proxy(PROXY).devices()}
        system.delete_snapshot(name)
        system.close()
        assert array.files() == []
        assert array.snapshots() == []
        assert array.volumes() == {volume.name: shown.naas[0]}
        assert array.connections() == [(PROXY, volume.name)]


def test_the_array_fails_as_it_is_told_to(tmp_path: Path, labvc_binary: Path) -> None:
    with san_site(tmp_path, labvc_binary, [vm_plan("vm01")], array=True) as (site, _, _client):
        system = connected(site)
        (volume,) = system.volumes()
        site.array.fault("POST /api/2.2/volume-snapshots", status=500, count=100)
        with pytest.raises(TransientTransportError):
            system.create_snapshot(snapshot_name(str(uuid4()), str(uuid4())), [volume.id])
        assert any("volume-snapshots" in call for call in site.array.calls())
        assert site.array.files() == []
        system.close()
        with pytest.raises(PeerIdentityError):
            connected(site, thumbprint=":".join(["00"] * 32)).volumes()
