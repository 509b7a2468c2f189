from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from transports.network.addresses import preferred_addresses
from transports.vsphere.model import HostAddress

MANAGEMENT = HostAddress(address="10.1.0.7")
VMOTION = HostAddress(address="192.168.4.7")
BACKUP = HostAddress(address="192.168.4.8", for_backup=True)
SIX = HostAddress(address="2001:db8::7")
ALL = (MANAGEMENT, VMOTION, BACKUP, SIX)


def test_networks_in_their_order_and_backup_adapters_first() -> None:
    found = preferred_addresses(ALL, ["192.168.0.0/16", "10.0.0.0/8"])
    assert found == ["192.168.4.8", "192.168.4.7", "10.1.0.7"]


def test_both_families_and_host_bits() -> None:
    assert preferred_addresses(ALL, ["2001:db8::1/32"]) == ["2001:db8::7"]
    assert preferred_addresses(ALL, ["192.168.4.7"]) == ["192.168.4.7"]


def test_nothing_preferred_nothing_known_nothing_readable() -> None:
    assert preferred_addresses(ALL, []) == []
    assert preferred_addresses([], ["10.0.0.0/8"]) == []
    assert preferred_addresses([HostAddress(address="esx1")], ["10.0.0.0/8", "the backup LAN"]) == []


@given(
    st.lists(st.ip_addresses().map(str)), st.lists(st.sampled_from(["0.0.0.0/0", "::/0", "10.0.0.0/8"]))
)
def test_each_address_once(addresses: list[str], networks: list[str]) -> None:
    found = preferred_addresses([HostAddress(address=one) for one in addresses], networks)
    assert len(found) == len(set(found))
    assert set(found) <= set(addresses)
