"""Where LUNs come from, out of what sysfs shows of iSCSI sessions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.sysfs import SysTree
from transports.block_devices import list_devices
from transports.direct_san.portals import portals_of


@pytest.fixture
def tree(tmp_path: Path) -> SysTree:
    return SysTree(tmp_path)


def portals(tree: SysTree, *names: str) -> tuple[str, ...]:
    devices = [device for device in list_devices(tree.machine) if device.name in names]
    assert len(devices) == len(names)
    return portals_of(tree.machine, devices)


def below(session: int) -> str:
    return f"platform/host3/session{session}/target3:0:0"


def test_the_portal_of_a_disk_s_session(tree: SysTree) -> None:
    tree.add_disk("sdb", address="3:0:0:0", below=below(1))
    tree.add_disk("sdc", address="3:0:0:1", below=below(2))
    tree.add_connection(1, address="192.0.2.40", persistent_address="192.0.2.40")
    tree.add_connection(2, address="192.0.2.50")
    tree.add_connection(12, address="192.0.2.60")
    assert portals(tree, "sdb") == ("192.0.2.40",)
    assert portals(tree, "sdb", "sdc") == ("192.0.2.40", "192.0.2.50")


def test_all_connections_count_and_where_a_target_sent_them(tree: SysTree) -> None:
    tree.add_disk("sdb", address="3:0:0:0", below=below(1))
    tree.add_connection(1, 0, address="192.0.2.41", persistent_address="192.0.2.40")
    tree.add_connection(1, 1, address="2001:db8::5", persistent_address="[2001:db8::5]")
    assert portals(tree, "sdb") == ("192.0.2.40", "192.0.2.41", "2001:db8::5")


def test_all_paths_of_a_multipath_device(tree: SysTree) -> None:
    for number, name in enumerate(("sdb", "sdc"), 1):
        tree.add_disk(name, address=f"3:0:0:{number}", below=below(number))
        tree.add_connection(number, address=f"192.0.2.{number}")
    tree.add_multipath("dm-0", "mpath-3600144f0", ["sdb", "sdc"])
    assert portals(tree, "dm-0") == ("192.0.2.1", "192.0.2.2")


def test_what_comes_over_no_ip_network_has_none(tree: SysTree) -> None:
    tree.add_disk("sdb", address="5:0:0:0", below="pci0000:00/host5/rport-5:0-1/target5:0:0")
    tree.add_disk("loop0")
    tree.add_connection(5, address="192.0.2.40")
    assert portals(tree, "sdb", "loop0") == ()


@pytest.mark.parametrize("told", ["", "(null)", "target.example"])
def test_what_is_no_address_is_left_out(tree: SysTree, told: str) -> None:
    tree.add_disk("sdb", address="3:0:0:0", below=below(1))
    tree.add_connection(1, address=told)
    assert portals(tree, "sdb") == ()
