from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pyVmomi import VmomiSupport, vim

from transports.errors import PermanentTransportError
from transports.vsphere import restore_spec
from transports.vsphere.config_export import FORMAT, VERSION, SavedConfig, nvram_path
from transports.vsphere.config_json import from_plain, to_plain
from transports.vsphere.model import NewDisk, VmConfig, VmPlacement
from transports.vsphere.restore_spec import Network

d: Any = vim.vm.device
PLACEMENT = VmPlacement(name="back", datacenter="DC1", datastore="ds2")


def option(key: str, value: str) -> Any:
    return vim.option.OptionValue(key=key, value=value)


def config_info() -> Any:
    label = lambda text: vim.Description(label=text, summary="")  # noqa: E731
    return vim.vm.ConfigInfo(
        name="db01",
        uuid="4200",
        instanceUuid="5000",
        version="vmx-19",
        guestId="debian12_64Guest",
        annotation="the database",
        firmware="efi",
        createDate=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        files=vim.vm.FileInfo(vmPathName="[ds1] db01/db01.vmx"),
        bootOptions=vim.vm.BootOptions(
            efiSecureBootEnabled=True,
            bootOrder=[
                vim.vm.BootOptions.BootableDiskDevice(deviceKey=2001),
                vim.vm.BootOptions.BootableEthernetDevice(deviceKey=4001),
                vim.vm.BootOptions.BootableCdromDevice(),
                vim.vm.BootOptions.BootableDiskDevice(deviceKey=2999),
            ],
        ),
        extraConfig=[
            option("disk.EnableUUID", "TRUE"),
            option("nvram", "db01.nvram"),
            option("ctkEnabled", "TRUE"),
            option("scsi0:0.ctkEnabled", "TRUE"),
            option("sched.swap.derivedName", "/vmfs/x.vswp"),
            option("vmhaul.mark", "older"),
        ],
        cpuFeatureMask=[vim.host.CpuIdInfo(level=1, eax="----")],
        hardware=vim.vm.VirtualHardware(
            numCPU=4,
            numCoresPerSocket=2,
            memoryMB=2048,
            device=[
                d.VirtualIDEController(key=200, busNumber=0),
                d.VirtualPCIController(key=100, busNumber=0),
                d.VirtualVideoCard(key=500, controllerKey=100),
                d.ParaVirtualSCSIController(
                    key=1000, busNumber=0, controllerKey=100, device=[2000, 2001]
                ),
                d.VirtualLsiLogicSASController(key=1001, busNumber=1, controllerKey=100, device=[2016]),
                d.VirtualCdrom(
                    key=3000,
                    controllerKey=200,
                    unitNumber=0,
                    deviceInfo=label("CD/DVD drive 1"),
                    backing=d.VirtualCdrom.IsoBackingInfo(fileName="[iso] old.iso"),
                ),
                d.VirtualSerialPort(key=9000, deviceInfo=label("Serial port 1")),
                d.VirtualVmxnet3(
                    key=4000,
                    controllerKey=100,
                    macAddress="00:50:56:00:00:01",
                    addressType="assigned",
                    deviceInfo=label("Network adapter 1"),
                    backing=d.VirtualEthernetCard.NetworkBackingInfo(deviceName="VM Network"),
                ),
                d.VirtualE1000e(
                    key=4001,
                    controllerKey=100,
                    macAddress="00:50:56:00:00:02",
                    addressType="manual",
                    deviceInfo=label("Network adapter 2"),
                    backing=d.VirtualEthernetCard.NetworkBackingInfo(deviceName="Old Network"),
                ),
                disk(2000, 1000, 0),
                disk(2001, 1000, 1),
                disk(2016, 1001, 5),
            ],
        ),
    )


def disk(key: int, controller: int, unit: int) -> Any:
    return d.VirtualDisk(
        key=key,
        controllerKey=controller,
        unitNumber=unit,
        capacityInKB=1 << 20,
        capacityInBytes=1 << 30,
        backing=d.VirtualDisk.FlatVer2BackingInfo(
            fileName=f"[ds1] db01/{key}.vmdk",
            diskMode="persistent",
            uuid=f"6000C29{key}",
            changeId="52/1",
        ),
    )


def saved(config: Any = None, **changes: Any) -> SavedConfig:
    document = {
        "format": FORMAT,
        "version": VERSION,
        "name": "db01",
        "place": {"datacenter": "DC1"},
        "networks": {"4000": "VM Network", "4001": "Old Network"},
        "config": to_plain(config or config_info()),
        **changes,
    }
    return SavedConfig(VmConfig(json=json.dumps(document).encode()))


def network(name: str) -> Network | None:
    backing = d.VirtualEthernetCard.NetworkBackingInfo(deviceName="VM Network")
    return Network(name="VM Network", backing=backing, is_substitute=name != "VM Network")


def added(spec: Any, kind: Any) -> list[Any]:
    return [change.device for change in spec.deviceChange if isinstance(change.device, kind)]


# ---- JSON


def test_config_survives_json() -> None:
    original = config_info()
    again = from_plain(json.loads(json.dumps(to_plain(original))))
    assert VmomiSupport.FormatObject(again) == VmomiSupport.FormatObject(original)
    assert again.createDate == original.createDate
    assert isinstance(again.hardware.device, VmomiSupport.Array)


def test_morefs_and_binaries_survive_json() -> None:
    backing = d.VirtualEthernetCard.NetworkBackingInfo(deviceName="n", network=vim.Network("network-7"))
    again = from_plain(json.loads(json.dumps(to_plain(backing))))
    assert again.network._moId == "network-7"
    bundle = vim.encryption.CryptoKeyPlain(
        keyId=vim.encryption.CryptoKeyId(keyId="k"), algorithm="AES", keyData="x"
    )
    assert from_plain(to_plain(bundle)).keyData == "x"


def test_unknown_classes_are_told() -> None:
    with pytest.raises(PermanentTransportError, match=r"vim\.vm\.Unheard"):
        from_plain({"_vimtype": "vim.vm.Unheard"})


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "no readable"),
        (b"[]", "no readable"),
        (b"{}", "no readable"),
        (b'{"format": "vmhaul-vm-config", "version": 2}', "newer vmhaul"),
    ],
)
def test_other_documents_are_refused(data: bytes, text: str) -> None:
    with pytest.raises(PermanentTransportError, match=text):
        SavedConfig(VmConfig(json=data))


# ---- the VM


def test_the_vm_is_made_as_it_was_without_its_disks() -> None:
    result = restore_spec.vm_spec(saved(), PLACEMENT, network, mark="m-1")
    spec = result.spec
    assert (spec.name, spec.version, spec.guestId) == ("back", "vmx-19", "debian12_64Guest")
    assert (spec.numCPUs, spec.numCoresPerSocket, spec.memoryMB) == (4, 2, 2048)
    assert (spec.annotation, spec.firmware) == ("the database", "efi")
    assert spec.files.vmPathName == "[ds2]"
    assert spec.bootOptions.efiSecureBootEnabled
    assert not spec.bootOptions.bootOrder
    assert [feature.operation for feature in spec.cpuFeatureMask] == ["add"]
    assert not added(spec, d.VirtualDisk)
    assert {(o.key, o.value) for o in spec.extraConfig} == {
        ("disk.EnableUUID", "TRUE"),
        ("vmhaul.mark", "m-1"),
    }


def test_a_new_identity_by_default() -> None:
    spec = restore_spec.vm_spec(saved(), PLACEMENT, network, mark="m").spec
    assert (spec.uuid, spec.instanceUuid) == (None, None)
    assert {card.addressType for card in added(spec, d.VirtualEthernetCard)} == {"generated"}
    assert {card.macAddress for card in added(spec, d.VirtualEthernetCard)} == {None}


def test_the_old_identity_on_request() -> None:
    placement = VmPlacement(name="back", datacenter="DC1", datastore="ds2", keep_identity=True)
    spec = restore_spec.vm_spec(saved(), placement, network, mark="m").spec
    assert (spec.uuid, spec.instanceUuid) == ("4200", "5000")
    assert [card.macAddress for card in added(spec, d.VirtualEthernetCard)] == [
        "00:50:56:00:00:01",
        "00:50:56:00:00:02",
    ]


def test_new_devices_name_each_other_by_negative_keys() -> None:
    spec = restore_spec.vm_spec(saved(), PLACEMENT, network, mark="m").spec
    keys = [change.device.key for change in spec.deviceChange]
    assert all(key < 0 for key in keys)
    assert len(set(keys)) == len(keys)
    controllers = added(spec, d.VirtualSCSIController)
    assert [(type(c), c.busNumber) for c in controllers] == [
        (d.ParaVirtualSCSIController, 0),
        (d.VirtualLsiLogicSASController, 1),
    ]
    assert all(not controller.device for controller in controllers)
    # What vSphere makes by itself keeps its well-known key.
    assert {c.controllerKey for c in controllers} == {100}
    assert [cdrom.controllerKey for cdrom in added(spec, d.VirtualCdrom)] == [200]


def test_drives_come_back_empty_and_host_devices_not_at_all() -> None:
    result = restore_spec.vm_spec(saved(), PLACEMENT, network, mark="m")
    drive = added(result.spec, d.VirtualCdrom)[0]
    assert isinstance(drive.backing, d.VirtualCdrom.RemotePassthroughBackingInfo)
    assert not drive.connectable.startConnected
    assert not added(result.spec, d.VirtualSerialPort)
    assert any("Serial port 1" in warning for warning in result.warnings)


def test_cards_without_their_network_are_left_disconnected() -> None:
    result = restore_spec.vm_spec(saved(), PLACEMENT, network, mark="m")
    first, second = added(result.spec, d.VirtualEthernetCard)
    assert first.connectable.startConnected
    assert not second.connectable.startConnected
    assert [w for w in result.warnings if "Network adapter 2" in w and "Old Network" in w]
    none = restore_spec.vm_spec(saved(), PLACEMENT, lambda _: None, mark="m")
    assert not added(none.spec, d.VirtualEthernetCard)
    assert len([w for w in none.warnings if "was left out" in w]) == 3


# ---- disks


def new_vm_devices() -> list[Any]:
    return [
        d.ParaVirtualSCSIController(key=1000, busNumber=0),
        d.VirtualLsiLogicSASController(key=1003, busNumber=1),
        d.VirtualVmxnet3(key=4007),
        d.VirtualE1000e(key=4008),
    ]


def test_a_disk_goes_to_its_controller_position() -> None:
    order = NewDisk(disk_key=2016, capacity_bytes=2 << 30, thin=True)
    changes, where = restore_spec.disk_spec(saved(), order, new_vm_devices(), PLACEMENT)
    assert where == ("VirtualLsiLogicSASController", 1, 5)
    (change,) = changes
    assert (change.operation, change.fileOperation) == ("add", "create")
    made = change.device
    assert (made.controllerKey, made.unitNumber, made.key < 0) == (1003, 5, True)
    assert (made.capacityInBytes, made.capacityInKB) == (2 << 30, 2 << 20)
    assert made.backing.fileName == "[ds2]"
    assert made.backing.thinProvisioned
    assert made.backing.diskMode == "persistent"
    assert made.backing.parent is None
    assert not made.backing.changeId
    assert not made.backing.uuid


def test_a_disk_may_go_to_another_datastore_and_keep_its_uuid() -> None:
    placement = VmPlacement(name="back", datacenter="DC1", datastore="ds2", keep_identity=True)
    order = NewDisk(disk_key=2001, capacity_bytes=1 << 30, thin=False, datastore="ds3")
    changes, _ = restore_spec.disk_spec(saved(), order, new_vm_devices(), placement)
    assert changes[0].device.backing.fileName == "[ds3]"
    assert changes[0].device.backing.uuid == "6000C292001"
    assert not changes[0].device.backing.thinProvisioned


@pytest.mark.parametrize(
    ("thin", "was_eager", "eager"), [(False, True, True), (False, False, False), (True, True, False)]
)
def test_a_thick_disk_is_zeroed_as_the_original_was(thin: bool, was_eager: bool, eager: bool) -> None:
    config = config_info()
    for device in config.hardware.device:
        if isinstance(device, d.VirtualDisk):
            device.backing.eagerlyScrub = was_eager
    order = NewDisk(disk_key=2001, capacity_bytes=1 << 30, thin=thin)
    changes, _ = restore_spec.disk_spec(saved(config), order, new_vm_devices(), PLACEMENT)
    assert changes[-1].device.backing.eagerlyScrub is eager


@pytest.mark.parametrize("was_eager", [True, False])
def test_a_disk_under_a_snapshot_is_zeroed_as_its_base_was(was_eager: bool) -> None:
    config = config_info()
    backing = d.VirtualDisk.FlatVer2BackingInfo
    for device in config.hardware.device:
        if isinstance(device, d.VirtualDisk):
            base = backing(fileName="[ds] a/a.vmdk", eagerlyScrub=was_eager)
            middle = backing(fileName="[ds] a/a-000001.vmdk", parent=base)
            device.backing.parent, device.backing.eagerlyScrub = middle, None
    order = NewDisk(disk_key=2001, capacity_bytes=1 << 30, thin=False)
    changes, _ = restore_spec.disk_spec(saved(config), order, new_vm_devices(), PLACEMENT)
    assert changes[-1].device.backing.eagerlyScrub is was_eager


def test_a_missing_controller_is_added_first() -> None:
    order = NewDisk(disk_key=2016, capacity_bytes=1 << 30, thin=True)
    changes, where = restore_spec.disk_spec(saved(), order, new_vm_devices()[:1], PLACEMENT)
    controller, made = [change.device for change in changes]
    assert isinstance(controller, d.VirtualLsiLogicSASController)
    assert controller.key == made.controllerKey < 0
    assert where == ("VirtualLsiLogicSASController", 1, 5)


def test_a_disk_that_is_not_in_the_configuration() -> None:
    with pytest.raises(KeyError):
        restore_spec.disk_spec(
            saved(), NewDisk(disk_key=7, capacity_bytes=512, thin=True), new_vm_devices(), PLACEMENT
        )


def test_boot_order_follows_the_new_keys() -> None:
    devices = [*new_vm_devices(), disk(2077, 1000, 1), disk(2078, 1000, 0)]
    order = restore_spec.boot_order(saved(), devices)
    assert [getattr(entry, "deviceKey", None) for entry in order] == [2077, 4008, None]


# ---- nvram


def test_nvram_is_found_by_option_or_by_layout() -> None:
    config = config_info()
    assert nvram_path(config) == "[ds1] db01/db01.nvram"
    config.extraConfig = []
    files = [
        vim.vm.FileLayoutEx.FileInfo(key=1, name="[ds1] db01/db01.vmx", type="config", size=1),
        vim.vm.FileLayoutEx.FileInfo(key=2, name="[ds1] db01/x.nvram", type="nvram", size=1),
    ]
    assert nvram_path(config, files) == "[ds1] db01/x.nvram"
    assert nvram_path(config) == ""
