"""Ports for servers that tests start."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_LOWEST = 10_240
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port(host: str = "127.0.0.1") -> int:
    """One on which nobody listens, and that no outgoing connection takes before the server does: the kernel gives
    these ports of a range of its own.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    first_of_kernel = int(_RANGE.read_text().split()[0])
    for port in random.sample(range(_LOWEST, max(first_of_kernel, _LOWEST + 1000)), 100):
        with socket.socket(family) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise AssertionError("a hundred ports in a row are taken")
