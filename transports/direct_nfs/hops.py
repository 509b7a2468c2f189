"""How many routers lie between this machine and a server, without rights that a proxy may not have.

A TCP connection is begun with a small time-to-live: what makes it to the server (accepted or refused) has passed
fewer routers than that, and what a router gives back has not.
"""

from __future__ import annotations

import socket
from contextlib import closing
from typing import Final

UNKNOWN: Final = -1
MAX_HOPS: Final = 30
WAIT_S: Final = 1.0
"""For one answer: routers on the way to a storage are near. One that says nothing counts as not passed."""
_IP_RECVERR: Final = 11  # linux/in.h: tell a socket of what routers report
_IPV6_RECVERR: Final = 25


def hops(host: str, port: int) -> int:
    """0: the same network. UNKNOWN where the server is further than MAX_HOPS, silent, or has no address."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        return UNKNOWN
    # Mostly on the same network or behind one router: from below, by doubling, then by halves.
    low, high = 0, 1
    while not _passes(family, address, high):
        if high >= MAX_HOPS:
            return UNKNOWN
        low, high = high, min(high * 2, MAX_HOPS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _passes(family, address, middle) else (middle, high)
    return high - 1


def _passes(family: int, address: tuple[object, ...], time_to_live: int) -> bool:
    try:
        with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, time_to_live)
                probe.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
            else:
                probe.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, time_to_live)
                probe.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
            probe.settimeout(WAIT_S)
            probe.connect(address)
    except ConnectionRefusedError:
        return True  # by the server itself
    except OSError:
        return False
    return True
