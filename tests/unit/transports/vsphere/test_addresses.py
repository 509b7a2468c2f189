"""Addresses of hosts and guests, as vSphere tells them."""

from __future__ import annotations

from typing import Any

import pytest
from pyVmomi import vim

from transports.vsphere.host_addresses import service_address
from transports.vsphere.inventory import vm_info
from transports.vsphere.places import Place, Places


def services(*kinds: tuple[str, str]) -> list[Any]:
    """Of each kind one adapter with that address, and another that is not selected."""

    def nic(key: str, address: str) -> Any:
        spec = vim.host.VirtualNic.Specification(ip=vim.host.IpConfig(ipAddress=address))
        return vim.host.VirtualNic(key=key, device=key, spec=spec)

    return [
        vim.host.VirtualNicManager.NetConfig(
            nicType=kind,
            candidateVnic=[nic("vmk8", "198.51.100.8"), nic(f"vmk-{kind}", address)],
            selectedVnic=[f"{kind}.vmk-{kind}"],
        )
        for kind, address in kinds
    ]


@pytest.mark.parametrize(
    ("told", "address"),
    [
        ([("management", "192.0.2.1"), ("vmotion", "192.0.2.2")], "192.0.2.1"),
        ([("management", "192.0.2.1"), ("vSphereBackupNFC", "192.0.2.3")], "192.0.2.3"),
        ([("vmotion", "192.0.2.2")], ""),
        ([], ""),
    ],
)
def test_the_adapter_that_carries_backup_traffic(told: list[tuple[str, str]], address: str) -> None:
    assert service_address(services(*told)) == address
    assert service_address(None) == ""


@pytest.mark.parametrize(
    ("name", "told", "address"),
    [
        ("esx1.example", [("management", "192.0.2.1")], "192.0.2.1"),
        ("192.0.2.9", [], "192.0.2.9"),
        ("esx1.example", [], ""),
    ],
)
def test_what_is_kept_of_a_vm_and_its_host(
    name: str, told: list[tuple[str, str]], address: str
) -> None:
    properties = {"config.virtualNicManagerInfo.netConfig": services(*told)}
    host = Place(moref="host-1", kind="HostSystem", name=name, parent="", properties=properties)
    nic = vim.vm.GuestInfo.NicInfo(ipAddress=["192.0.2.31", "fe80::1"])
    seen = {
        "name": "px",
        "runtime.host": vim.HostSystem("host-1"),
        "guest.net": [nic, vim.vm.GuestInfo.NicInfo()],
        "guest.toolsVersionStatus2": "guestToolsCurrent",
    }
    found = vm_info("vm-1", seen, Places([host]), ())
    assert found.host_address == address
    assert found.guest_addresses == ("192.0.2.31", "fe80::1")
    assert found.tools_version == "guestToolsCurrent"
    assert vm_info("vm-1", {"name": "px"}, Places([]), ()).guest_addresses == ()
