"""What vCenter says of VMs and storage, where it decides how a disk may be read."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim, vmodl
from vmhaul_lab.errors import LabError
from vmhaul_lab.images import DiskPlan
from vmhaul_lab.plan import DatacenterPlan, DatastorePlan, SitePlan, VmPlan
from vmhaul_lab.proxies import ProxyPlan
from vmhaul_lab.site import LabSite

from tests.integration.lab.vcenter import Session, lab_session

pytestmark = pytest.mark.lab

MIB = 1 << 20
TWIN = "42000000-1111-2222-3333-444455556666"


def disk(label: str = "disk", **facts: Any) -> DiskPlan:
    return DiskPlan(label=label, capacity_bytes=2 * MIB, layout="raw", **facts)


PLAN = SitePlan(
    datastores=(
        DatastorePlan(name="shared"),
        DatastorePlan(name="local1", hosts=("esx1.lab",)),
        DatastorePlan(name="frozen", kind="NFS41", read_only_hosts=("esx2.lab",)),
        DatastorePlan(name="vsan1", kind="vsan"),
        DatastorePlan(name="vvol1", kind="VVOL"),
    ),
    more_datacenters=(
        DatacenterPlan(name="DC2", hosts=("esx9.lab",), datastores=(DatastorePlan(name="far"),)),
    ),
    vms=(
        VmPlan(name="plain", disks=(disk(),), guest_id="windows2019srv_64Guest", tools="missing"),
        VmPlan(name="secret", disks=(disk(),), key_id="key-1"),
        VmPlan(name="old", disks=(disk(controller="ide"),), uuid=TWIN, tools="stopped"),
        VmPlan(name="twin", disks=(disk(datastore="local1"),), uuid=TWIN),
        VmPlan(
            name="kinds",
            disks=(
                disk("eager", thin=False, eager=True),
                disk("shared", thin=False, sharing="sharingMultiWriter"),
                disk("physical", rdm="physical"),
                disk("virtual", rdm="virtual"),
                disk("vsan", datastore="vsan1"),
                disk("vvol", datastore="vvol1"),
            ),
            bus_sharing="virtualSharing",
        ),
        VmPlan(name="mould", disks=(disk(),), template=True, power="off"),
        VmPlan(name="abroad", disks=(disk(),), datacenter="DC2", host="esx9.lab"),
    ),
    proxies=(
        ProxyPlan(name="proxy1"),
        ProxyPlan(name="proxy2", host="esx2.lab"),
        ProxyPlan(name="sealed", key_id="key-2"),
        ProxyPlan(name="abroad-proxy", datacenter="DC2"),
    ),
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, labvc_binary: Path) -> Iterator[LabSite]:
    with LabSite(tmp_path_factory.mktemp("facts") / "site", PLAN, binary=labvc_binary) as made:
        yield made


@pytest.fixture
def vc(site: LabSite) -> Iterator[Session]:
    with lab_session(site) as made:
        yield made


def attach(vc: Session, proxy: str, path: str) -> Any:
    new = vim.vm.device.VirtualDisk(
        key=-1,
        controllerKey=1000,
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName=path, diskMode="independent_nonpersistent"
        ),
    )
    change = vim.vm.device.VirtualDeviceSpec(operation="add", device=new)
    return vc.vm(proxy).ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change]))


def frozen(vc: Session, vm: str) -> str:
    path: str = vc.disks(vc.snapshot(vc.vm(vm)))[0].backing.fileName
    return path


def test_guests_and_their_tools(vc: Session) -> None:
    plain, old, kinds = (vc.get(vc.vm(name), "guest") for name in ("plain", "old", "kinds"))
    assert (plain.guestFamily, plain.toolsStatus) == ("windowsGuest", "toolsNotInstalled")
    assert (old.guestFamily, old.toolsRunningStatus) == ("linuxGuest", "guestToolsNotRunning")
    assert kinds.toolsRunningStatus == "guestToolsRunning"


def test_disks_of_all_kinds(site: LabSite, vc: Session) -> None:
    disks = vc.disks(vc.vm("kinds"))
    eager, shared, physical, virtual, vsan, vvol = (item.backing for item in disks)
    assert (eager.thinProvisioned, eager.eagerlyScrub) == (False, True)
    assert shared.sharing == "sharingMultiWriter"
    rdm = vim.vm.device.VirtualDisk.RawDiskMappingVer1BackingInfo
    assert isinstance(physical, rdm)
    assert isinstance(virtual, rdm)
    assert (physical.compatibilityMode, virtual.compatibilityMode) == ("physicalMode", "virtualMode")
    assert vsan.fileName.startswith("[vsan1]")
    assert vvol.fileName.startswith("[vvol1]")
    assert len({item.key for item in disks}) == len(disks)
    devices = vc.get(vc.vm("kinds"), "config.hardware.device")
    (bus,) = (item for item in devices if isinstance(item, vim.vm.device.VirtualSCSIController))
    assert bus.sharedBus == "virtualSharing"
    assert len(bus.device) == len(disks)
    assert [item.eager for item in site.disks("kinds")] == [True, False, False, False]
    kinds = {
        store.name: type(store.info).__name__.rpartition(".")[2] for store in vc.all(vim.Datastore)
    }
    assert kinds["vsan1"] == "VsanDatastoreInfo"
    assert kinds["vvol1"] == "VvolDatastoreInfo"
    ide = vc.disks(vc.vm("old"))[0]
    assert ide.controllerKey in {200, 201}


def test_hosts_mount_not_the_same(vc: Session) -> None:
    mounts = {
        store.name: {mount.key.name: mount.mountInfo.accessMode for mount in store.host}
        for store in vc.all(vim.Datastore)
    }
    both = {"esx1.lab": "readWrite", "esx2.lab": "readWrite"}
    assert mounts["shared"] == both
    assert mounts["local1"] == {"esx1.lab": "readWrite"}
    assert mounts["frozen"] == {**both, "esx2.lab": "readOnly"}
    assert mounts["far"] == {"esx9.lab": "readWrite"}


def test_who_may_be_given_which_disk(vc: Session) -> None:
    """A host must mount the datastore; an encrypted disk wants an encrypted VM; IDE disks stay where they are."""
    local, secret, ide = frozen(vc, "twin"), frozen(vc, "secret"), frozen(vc, "old")
    assert vc.get(vc.vm("secret"), "config.keyId").keyId == "key-1"
    for proxy, path, fault in (
        ("proxy2", local, vim.fault.InvalidDatastorePath),
        ("abroad-proxy", local, vim.fault.InvalidDatastorePath),
        ("proxy1", secret, vim.fault.InvalidDeviceBacking),
        ("proxy1", ide, vim.fault.InvalidDeviceBacking),
    ):
        assert isinstance(vc.attempt(lambda p=proxy, d=path: attach(vc, p, d)), fault), (proxy, path)
    vc.wait(attach(vc, "proxy1", local))
    vc.wait(attach(vc, "sealed", secret))
    assert vc.disks(vc.vm("sealed"))[1].backing.keyId.keyId == "key-1"


def test_two_vms_with_one_uuid_and_a_template(vc: Session) -> None:
    assert [vc.get(vc.vm(name), "config.uuid") for name in ("old", "twin")] == [TWIN, TWIN]
    assert vc.get(vc.vm("mould"), "config.template") is True
    assert isinstance(
        vc.attempt(lambda: attach(vc, "mould", "[shared] plain/plain.vmdk")), vmodl.fault.NotSupported
    )


def test_a_plan_with_what_does_not_exist_is_refused(tmp_path: Path, labvc_binary: Path) -> None:
    for vm, words in (
        (VmPlan(name="a", disks=(disk(),), datacenter="DC7"), "DC7"),
        (VmPlan(name="b", disks=(disk(eager=True),)), "thin and eager"),
        (VmPlan(name="c", disks=(disk(rdm="logical"),)), "logical"),
        (VmPlan(name="d", disks=(disk(),), tools="broken"), "broken"),
    ):
        plan = replace(PLAN, vms=(vm,), proxies=())
        with (
            pytest.raises(LabError, match=words),
            LabSite(tmp_path / vm.name, plan, binary=labvc_binary),
        ):
            pass
