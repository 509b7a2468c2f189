from __future__ import annotations

from typing import Any

import pytest
from pyVmomi import vim

from transports.vsphere.devices import backup_obstacle, disk_infos, split_path

d: Any = vim.vm.device


def disk(backing: Any = None, key: int = 2000, controller: int = 1000, unit: int = 0) -> Any:
    return d.VirtualDisk(
        key=key,
        controllerKey=controller,
        unitNumber=unit,
        capacityInKB=1024,
        deviceInfo=vim.Description(label=f"Hard disk {unit + 1}", summary=""),
        backing=backing or flat("[ds] db01/db01.vmdk"),
    )


def flat(path: str, **more: Any) -> Any:
    return d.VirtualDisk.FlatVer2BackingInfo(**{"fileName": path, "diskMode": "persistent", **more})


def scsi(**more: Any) -> Any:
    return d.ParaVirtualSCSIController(key=1000, busNumber=1, **{"sharedBus": "noSharing", **more})


@pytest.mark.parametrize(
    ("backing", "controller", "words"),
    [
        (flat("[ds] a/a.vmdk"), scsi(), ""),
        (flat("[ds] a/a.vmdk", sharing="sharingNone"), scsi(), ""),
        (flat("[ds] a/a.vmdk"), None, ""),
        (flat("[ds] a/a.vmdk", diskMode="independent_persistent"), scsi(), "independent"),
        (flat("[ds] a/a.vmdk", diskMode="independent_nonpersistent"), scsi(), "independent"),
        (flat("[ds] a/a.vmdk", sharing="sharingMultiWriter"), scsi(), "multi-writer"),
        (flat("[ds] a/a.vmdk"), scsi(sharedBus="physicalSharing"), "shared bus"),
        (flat("[ds] a/a.vmdk"), scsi(sharedBus="virtualSharing"), "shared bus"),
        (
            d.VirtualDisk.RawDiskMappingVer1BackingInfo(
                fileName="[ds] a/rdm.vmdk", compatibilityMode="physicalMode", diskMode="persistent"
            ),
            scsi(),
            "physical mode",
        ),
        (
            d.VirtualDisk.RawDiskMappingVer1BackingInfo(
                fileName="[ds] a/rdm.vmdk", compatibilityMode="virtualMode", diskMode="persistent"
            ),
            scsi(),
            "",
        ),
        (
            d.VirtualDisk.RawDiskVer2BackingInfo(descriptorFileName="x", deviceName="y"),
            scsi(),
            "no file",
        ),
    ],
)
def test_obstacles_are_told_in_words(backing: Any, controller: Any, words: str) -> None:
    obstacle = backup_obstacle(disk(backing), controller)
    assert words in obstacle
    assert bool(obstacle) == bool(words)


def test_disk_infos() -> None:
    root = flat("[ds 1] db01/db01.vmdk")
    middle = flat("[ds 1] db01/db01-000001.vmdk", parent=root)
    leaf = flat(
        "[ds 1] db01/db01-000002.vmdk",
        parent=middle,
        uuid="6000C29a",
        changeId="52/3",
        thinProvisioned=True,
    )
    nvme = d.VirtualNVMEController(key=31000, busNumber=0)
    sata = d.VirtualAHCIController(key=15000, busNumber=2)
    ide = d.VirtualIDEController(key=200, busNumber=0)
    infos = disk_infos(
        [
            scsi(),
            nvme,
            sata,
            ide,
            disk(leaf, unit=3),
            disk(key=32000, controller=31000),
            disk(key=16000, controller=15000, unit=5),
            disk(key=3000, controller=200),
            disk(key=9, controller=4711),
            d.VirtualCdrom(key=3002, controllerKey=200),
        ]
    )
    assert [info.controller for info in infos] == [
        "SCSI (1:3)",
        "NVMe (0:0)",
        "SATA (2:5)",
        "IDE (0:0)",
        "unknown (0:0)",
    ]
    first = infos[0]
    assert (first.path, first.base_path) == ("[ds 1] db01/db01-000002.vmdk", "[ds 1] db01/db01.vmdk")
    assert (first.datastore, first.uuid, first.change_id, first.thin) == (
        "ds 1",
        "6000C29a",
        "52/3",
        True,
    )
    assert first.capacity_bytes == 1 << 20
    assert first.label == "Hard disk 4"


def test_what_the_rules_of_transport_modes_ask_of_a_disk() -> None:
    mapping = d.VirtualDisk.RawDiskMappingVer1BackingInfo(
        fileName="[ds] a/rdm.vmdk", compatibilityMode="virtualMode"
    )
    key = vim.encryption.CryptoKeyId(keyId="k1")
    plain, eager, rdm, secret = disk_infos(
        [
            disk(flat("[ds] a/a.vmdk")),
            disk(flat("[ds] a/b.vmdk", eagerlyScrub=True)),
            disk(mapping),
            disk(flat("[ds] a/c.vmdk", keyId=key)),
        ]
    )
    assert [(one.eager, one.is_rdm, one.encrypted) for one in (plain, eager, rdm, secret)] == [
        (False, False, False),
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]


def test_bytes_are_preferred_to_kibibytes() -> None:
    odd = disk()
    odd.capacityInBytes = (1 << 20) + 512
    assert disk_infos([odd])[0].capacity_bytes == (1 << 20) + 512


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("[ds] a/b.vmdk", ("ds", "a/b.vmdk")),
        ("[my store (1)] a b/c.vmdk", ("my store (1)", "a b/c.vmdk")),
        ("[ds]", ("ds", "")),
        ("/vmfs/volumes/x", ("", "/vmfs/volumes/x")),
    ],
)
def test_datastore_paths(path: str, parts: tuple[str, str]) -> None:
    assert split_path(path) == parts


@pytest.mark.parametrize(("thin", "eager"), [(True, False), (False, True), (False, False)])
def test_a_delta_is_as_thick_as_its_base(thin: bool, eager: bool) -> None:
    base = flat("[ds1] a/a.vmdk", thinProvisioned=thin, eagerlyScrub=eager)
    [found] = disk_infos([disk(flat("[ds1] a/a-000001.vmdk", thinProvisioned=not thin, parent=base))])
    assert (found.thin, found.eager) == (thin, eager)
    assert found.base_path == "[ds1] a/a.vmdk"
