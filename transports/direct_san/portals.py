"""Where the LUNs of this machine come from over an IP network: the portals of iSCSI targets, out of sysfs.

A disk that an iSCSI initiator shows lies below its session ("…/host3/session1/target3:0:0/3:0:0:0"), and each
connection of a session names its portal. A LUN over Fibre Channel or SAS lies below none.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from transports.block_devices import BlockDevice
from transports.machine import Machine

_SESSION: Final = "session"
_CONNECTIONS: Final = "class/iscsi_connection"
_ATTRIBUTES: Final = ("address", "persistent_address")
"""Where the connection leads now, which a target may have redirected; and where it was told to lead."""


def portals_of(machine: Machine, devices: Iterable[BlockDevice]) -> tuple[str, ...]:
    """IP addresses of the portals through which these devices are reached, over all of their paths; sorted. Empty:
    over no IP network, or over one that the kernel says nothing of.
    """
    names = [name for device in devices for name in (device.paths or (device.name,))]
    sessions = {number for name in names for number in _sessions_of(machine, name)}
    return tuple(sorted({address for number in sessions for address in _addresses_of(machine, number)}))


def _sessions_of(machine: Machine, device: str) -> list[str]:
    """Numbers of the sessions that the device lies below."""
    try:
        place = (Path(machine.sys_path) / "block" / device / "device").resolve(strict=True)
    except OSError:
        return []  # gone meanwhile, or no device of a bus
    numbers = [part.removeprefix(_SESSION) for part in place.parts if part.startswith(_SESSION)]
    return [number for number in numbers if number.isdigit()]


def _addresses_of(machine: Machine, session: str) -> set[str]:
    found: set[str] = set()
    for connection in (Path(machine.sys_path) / _CONNECTIONS).glob(f"connection{session}:*"):
        told = (_address(connection / name) for name in _ATTRIBUTES)
        found.update(address for address in told if address)
    return found


def _address(attribute: Path) -> str:
    """Empty where there is none, or a name instead of an address."""
    try:
        text = attribute.read_text().strip().strip("[]")
        return str(ip_address(text.partition("%")[0]))
    except (OSError, ValueError):
        return ""
