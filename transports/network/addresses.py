"""Which of a host's addresses to connect to. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from transports.vsphere.model import HostAddress


def preferred_addresses(addresses: Iterable[HostAddress], networks: Sequence[str]) -> list[str]:
    """Those in the preferred networks ("192.0.2.0/24"), in the order of the networks; in each network the
    ones that the administrator tagged for backup traffic first. A text that is no network matches nothing.
    """
    known = list(addresses)
    found: dict[str, None] = {}
    for text in networks:
        network = _network(text)
        if network is None:
            continue
        inside = [one for one in known if _is_in(one.address, network)]
        for one in sorted(inside, key=lambda one: not one.for_backup):
            found[one.address] = None
    return list(found)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _is_in(address: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    try:
        return ipaddress.ip_address(address) in network
    except ValueError:
        return False
