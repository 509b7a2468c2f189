"""What sysfs shows of disks."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.sysfs import SysTree, designator, page_83
from transports import block_devices, scsi_names
from transports.block_devices import ScsiAddress, list_devices, with_wwid
from transports.errors import PermanentTransportError
from transports.machine import Machine

NAA = bytes.fromhex("6000c29abcde0123456789abcdef0123")
NAME = "naa." + NAA.hex()


@pytest.fixture
def tree(tmp_path: Path) -> SysTree:
    return SysTree(tmp_path)


def test_a_scsi_disk_with_all_that_it_shows(tree: SysTree, tmp_path: Path) -> None:
    content = tmp_path / "disk"
    content.write_bytes(bytes(2 << 20))
    tree.add_disk(
        "sdb", content, wwid="naa.6000C29ABCDE0123456789ABCDEF0123", address="2:0:1:0", number="8:16",
        sequence="31", read_only=True,
    )  # fmt: skip
    (device,) = list_devices(tree.machine)
    assert device.name == "sdb"
    assert device.node == str(tree.dev / "sdb")
    assert device.size_bytes == 2 << 20
    assert device.read_only
    assert device.wwids == (NAME,)
    assert device.address == ScsiAddress(host=2, channel=0, target=1, lun=0)
    assert str(device.address) == "2:0:1:0"
    assert device.number == (8, 16)
    assert device.sequence == "31"
    assert not device.is_multipath


def test_a_disk_that_shows_nothing_but_its_size(tree: SysTree) -> None:
    tree.add_disk("loop0", size_bytes=4096)
    (device,) = list_devices(tree.machine)
    assert (device.size_bytes, device.wwids, device.address, device.number) == (4096, (), None, None)


def test_names_come_from_page_83_where_there_is_no_wwid(tree: SysTree) -> None:
    tree.add_disk("sdb", address="0:0:0:0", page_83=page_83(designator(3, NAA)))
    assert list_devices(tree.machine)[0].wwids == (NAME,)


def test_both_sources_name_a_disk_once(tree: SysTree) -> None:
    page = page_83(designator(1, b"VMware  Virtual disk"), designator(3, NAA))
    tree.add_disk("sdb", address="0:0:0:0", wwid=NAME, page_83=page)
    assert list_devices(tree.machine)[0].wwids == (NAME, "t10.vmware__virtual_disk")


def test_an_nvme_disk_has_its_wwid_elsewhere(tree: SysTree) -> None:
    block = tree.add_disk("nvme0n1")
    (block / "wwid").write_text("eui.0025385B71B0A1F2\n")
    assert list_devices(tree.machine)[0].wwids == ("eui.0025385b71b0a1f2",)


def test_multipath_comes_before_its_paths_and_hides_them(tree: SysTree) -> None:
    for name, address in (("sdb", "2:0:0:1"), ("sdc", "3:0:0:1")):
        tree.add_disk(name, address=address, wwid=NAME)
    tree.add_multipath("dm-7", f"mpath-3{NAA.hex()}", ["sdb", "sdc"])
    devices = list_devices(tree.machine)
    assert [device.name for device in with_wwid(devices, NAME.upper())] == ["dm-7"]
    (multipath,) = (device for device in devices if device.is_multipath)
    assert multipath.paths == ("sdb", "sdc")


def test_a_path_that_multipath_does_not_hold_is_found_after_it(tree: SysTree) -> None:
    tree.add_disk("sda", address="2:0:0:1", wwid=NAME)
    tree.add_multipath("dm-0", f"mpath-3{NAA.hex()}", ["sdz"])
    assert [d.name for d in with_wwid(list_devices(tree.machine), NAME)] == ["dm-0", "sda"]


def test_other_device_mapper_devices_have_no_name_of_storage(tree: SysTree) -> None:
    tree.add_multipath("dm-0", "LVM-abc", [])
    tree.add_multipath("dm-1", "mpath-xodd", [])
    assert [device.wwids for device in list_devices(tree.machine)] == [(), ()]


def test_hosts_are_asked_to_scan(tree: SysTree) -> None:
    hosts = [tree.add_host(0, "ata_piix"), tree.add_host(2)]
    assert block_devices.scan(tree.machine) == 2
    assert {(host / "scan").read_text() for host in hosts} == {"- - -\n"}
    assert block_devices.scsi_hosts(tree.machine) == {0: "ata_piix", 2: "vmw_pvscsi"}


def test_a_host_that_cannot_scan_is_passed_over(tree: SysTree) -> None:
    host = tree.add_host(0)
    (host / "scan").unlink()
    (host / "scan").mkdir()
    tree.add_host(1)
    assert block_devices.scan(tree.machine) == 1


def test_a_machine_without_scsi_has_no_hosts(tree: SysTree) -> None:
    assert block_devices.scan(tree.machine) == 0


def test_delete_asks_the_kernel(tree: SysTree) -> None:
    block = tree.add_disk("sdb", address="2:0:1:0", number="8:16")
    (device,) = list_devices(tree.machine)
    block_devices.delete(tree.machine, device)
    assert (block / "device/delete").read_text() == "1\n"


def test_delete_of_what_is_gone_does_nothing(tree: SysTree) -> None:
    tree.add_disk("sdb", address="2:0:1:0", number="8:16")
    (device,) = list_devices(tree.machine)
    tree.remove_disk("sdb")
    block_devices.delete(tree.machine, device)


def test_delete_spares_another_disk_that_has_the_name_now(tree: SysTree) -> None:
    tree.add_disk("sdb", address="2:0:1:0", number="8:16", sequence="1")
    (device,) = list_devices(tree.machine)
    tree.remove_disk("sdb")
    block = tree.add_disk("sdb", address="2:0:2:0", number="8:16", sequence="2")
    block_devices.delete(tree.machine, device)
    assert (block / "device/delete").read_text() == ""


def test_delete_that_the_kernel_refuses_says_what_to_do(tree: SysTree) -> None:
    block = tree.add_disk("sdb", address="2:0:1:0")
    (block / "device/delete").unlink()
    (block / "device/delete").mkdir()
    (device,) = list_devices(tree.machine)
    with pytest.raises(PermanentTransportError, match=r"does not let go of .*sdb.*lsblk"):
        block_devices.delete(tree.machine, device)


def test_a_machine_that_shows_no_devices_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PermanentTransportError, match="cannot be read"):
        list_devices(Machine(sys_path=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("given_name", "expected"),
    [
        ("naa.6000C29A", "naa.6000c29a"),
        ("0x" + NAA.hex().upper(), NAME),
        (NAA.hex(), NAME),
        ("wwn-0x" + NAA.hex(), NAME),
        ("t10.ATA     disk  4711  ", "t10.ata_____disk__4711"),
        ("t10.ATA_____disk__4711__", "t10.ata_____disk__4711"),
        ("mpx.vmhba0:C0:T0:L0", "mpx.vmhba0:c0:t0:l0"),
        ("eui.0025385B\n", "eui.0025385b"),
    ],
)
def test_names_in_one_form(given_name: str, expected: str) -> None:
    assert scsi_names.normalised(given_name) == expected


def test_a_backing_uuid_is_the_disk_s_name() -> None:
    assert scsi_names.naa_of_uuid("6000C29a-bcde-0123-4567-89abcdef0123") == NAME
    assert scsi_names.naa_of_uuid("6000C29abcde01234567 89abcdef0123") == NAME


def test_names_of_ports_and_targets_are_not_the_disk_s() -> None:
    page = page_83(
        designator(3, bytes(8), association=1),
        designator(3, bytes(8), association=2),
        designator(2, bytes.fromhex("0025385b71b0a1f2")),
        designator(4, b"\0\0\0\1"),
        designator(8, b"naa.5000C500A1B2C3D4\0\0\0\0"),
        designator(8, b"iqn.1998-01.example"),
    )
    assert scsi_names.names_of_page_83(page) == ["eui.0025385b71b0a1f2", "naa.5000c500a1b2c3d4"]


def test_a_page_that_is_cut_off_or_another_is_no_error() -> None:
    whole = page_83(designator(3, NAA), designator(3, NAA))
    assert scsi_names.names_of_page_83(whole[:-1]) == [NAME]
    assert scsi_names.names_of_page_83(b"\0\x80" + whole[2:]) == []
    assert scsi_names.names_of_page_83(b"") == []


@given(st.binary(max_size=200))
def test_any_page_is_read_without_failing(body: bytes) -> None:
    page = b"\0\x83" + len(body).to_bytes(2, "big") + body
    assert all(name == scsi_names.normalised(name) for name in scsi_names.names_of_page_83(page))
