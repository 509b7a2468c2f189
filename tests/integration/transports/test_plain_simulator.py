"""The same calls against the simulator of Debian's govmomi alone, as far as that goes."""

from __future__ import annotations

import time

import pytest

from transports.errors import (
    ChangeTrackingUnusableError,
    ObjectGoneError,
    PeerIdentityError,
    PermanentTransportError,
)
from transports.vsphere import connect
from transports.vsphere.api import Vsphere
from transports.vsphere.model import (
    CloneTicket,
    Endpoint,
    Login,
    NewDisk,
    PowerState,
    Secret,
    VmInfo,
    VmPlacement,
)

pytestmark = pytest.mark.lab


@pytest.fixture
def vm(plain: Vsphere) -> VmInfo:
    return next(vm for vm in plain.inventory().vms if vm.name.startswith("DC0_C0"))


def test_inventory(plain: Vsphere) -> None:
    inventory = plain.inventory()
    assert inventory.datacenters == ("DC0",)
    assert inventory.clusters == ("DC0_C0",)
    assert "DC0/DC0_C0/Resources" in inventory.resource_pools
    assert len(inventory.hosts) == 4
    assert {host.cluster for host in inventory.hosts} == {"", "DC0_C0"}
    assert all(
        vm.disks and vm.path == ("DC0", "vm") for vm in inventory.vms if vm.name.startswith("DC0_")
    )
    assert inventory.tags_known
    assert plain.datastore("LocalDS_0", "DC0").accessible


def test_session_and_clone(plain: Vsphere, plain_endpoint: Endpoint) -> None:
    assert plain.about().api_version == "8.0.3.0"
    assert abs(plain.clock_offset_s()) < 5
    plain.keep_alive()
    assert plain.missing_privileges("backup") == []
    clone = connect(plain_endpoint, CloneTicket(ticket=plain.clone_ticket()), clock=time.time)
    assert clone.about() == plain.about()
    clone.close()


def test_snapshots(plain: Vsphere, vm: VmInfo) -> None:
    first = plain.create_snapshot(vm.moref, name="one", description="d", quiesce=True)
    second = plain.create_snapshot(vm.moref, name="two", description="", quiesce=False)
    assert [s.moref for s in plain.snapshots(vm.moref)] == [first.moref, second.moref]
    assert [disk.key for disk in first.disks] == [disk.key for disk in vm.disks]
    plain.remove_snapshot(vm.moref, first.moref)
    assert [s.name for s in plain.snapshots(vm.moref)] == ["two"]
    plain.remove_snapshot(vm.moref, second.moref)
    plain.remove_snapshot(vm.moref, second.moref)
    assert plain.snapshots(vm.moref) == []
    assert not plain.consolidation_needed(vm.moref)


def test_what_it_lacks_is_said(plain: Vsphere, vm: VmInfo) -> None:
    made = plain.create_snapshot(vm.moref, name="one", description="", quiesce=False)
    with pytest.raises(ChangeTrackingUnusableError, match="no change id"):
        plain.changed_areas(vm.moref, made.moref, made.disks[0].key, "*")
    plain.remove_snapshot(vm.moref, made.moref)
    with pytest.raises(PermanentTransportError, match="cannot"):
        plain.nfc_ticket(vm.moref, vm.disks[0].key, write=False)
    with pytest.raises(ObjectGoneError):
        plain.vm("vm-99999")


def test_change_tracking_flag(plain: Vsphere, vm: VmInfo) -> None:
    plain.enable_change_tracking(vm.moref)
    assert plain.vm(vm.moref).change_tracking_enabled


def test_a_vm_is_made_with_disks_started_and_another_deleted(plain: Vsphere, vm: VmInfo) -> None:
    config = plain.vm_config(vm.moref, None)
    placement = VmPlacement(name="restored", datacenter="DC0", datastore="LocalDS_0")
    new = plain.create_vm(config, placement, mark="plain-1")
    assert plain.find_marked_vm("plain-1") == new
    disk = vm.disks[0]
    made = plain.add_disks(
        new, config, [NewDisk(disk_key=disk.key, capacity_bytes=1 << 20, thin=True)], placement
    )
    assert made[disk.key].controller == disk.controller
    assert made[disk.key].capacity_bytes == 1 << 20
    assert plain.finish_vm(new, config, placement) == []
    plain.power_on(new)
    assert plain.vm(new).power_state is PowerState.ON
    other = plain.create_vm(
        config, VmPlacement(name="another", datacenter="DC0", datastore="LocalDS_0"), mark="plain-2"
    )
    plain.destroy_marked_vm(other, "plain-2")
    with pytest.raises(ObjectGoneError):
        plain.vm(other)


def test_a_thumbprint_is_asked_for(plain_endpoint: Endpoint) -> None:
    login = Login(username="user", password=Secret("pass"))
    with pytest.raises(PeerIdentityError):
        connect(Endpoint(host=plain_endpoint.host, port=plain_endpoint.port), login, clock=time.time)
