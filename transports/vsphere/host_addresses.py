"""Addresses of an ESXi host: those of its VMkernel adapters, and which of them are for backup traffic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from pyVmomi import vim

from transports.vsphere.model import HostAddress
from transports.vsphere.properties import read
from transports.vsphere.session import Connection

BACKUP_SERVICE: Final = "vSphereBackupNFC"
"""Tag of VMkernel adapters for backup over the network, from vSphere 7.0 on."""
_VNICS: Final = "config.network.vnic"
SERVICES: Final = "config.virtualNicManagerInfo.netConfig"
_MANAGEMENT: Final = "management"


def read_host_addresses(connection: Connection, host_moref: str) -> tuple[HostAddress, ...]:
    """In the order of the adapters. Nothing for a host that does not tell."""
    host = connection.object(vim.HostSystem, host_moref)
    seen = read(connection, host, _VNICS, SERVICES)
    tagged = {
        key
        for service in seen.get(SERVICES) or []
        if str(service.nicType) == BACKUP_SERVICE
        for key in _selected(service)
    }
    return tuple(
        HostAddress(address=address, for_backup=bool({str(nic.key), str(nic.device)} & tagged))
        for nic in seen.get(_VNICS) or []
        for address in _addresses(nic)
    )


def service_address(services: Any) -> str:
    """First address of the adapter for backup traffic, else of the one for management; empty: none is told."""
    for kind in (BACKUP_SERVICE, _MANAGEMENT):
        for service in services or []:
            chosen = set(_selected(service)) if str(service.nicType) == kind else set()
            for nic in service.candidateVnic or []:
                if chosen & {str(nic.key), str(nic.device)}:
                    return next(_addresses(nic), "")
    return ""


def _selected(service: Any) -> Iterator[str]:
    """Keys and names of the adapters that have the service: keys are "vSphereBackupNFC.key-vim.host…"."""
    keys = {str(key) for key in service.selectedVnic or []}
    for nic in service.candidateVnic or []:
        if {str(nic.key), f"{service.nicType}.{nic.key}"} & keys:
            yield str(nic.key)
            yield str(nic.device)


def _addresses(nic: Any) -> Iterator[str]:
    ip = getattr(nic.spec, "ip", None)
    if ip is None:
        return
    if ip.ipAddress:
        yield str(ip.ipAddress)
    six = getattr(ip, "ipV6Config", None)
    for one in getattr(six, "ipV6Address", None) or []:
        if (
            not str(one.ipAddress).lower().startswith("fe80")
        ):  # an address of one link cannot be dialled
            yield str(one.ipAddress)
