"""Every proxy in a network namespace of its own, with one cable for each thing that it talks to.

The round's own namespace holds everything else. A cable is a pair of virtual network cards; pulled, it carries
nothing and nobody is told: connections stay open and what is sent gets lost, as with a dead switch.
"""

from __future__ import annotations

import subprocess
from typing import Final

from tests.chaos.plan import Link

ADDRESSES: Final = {Link.BROKER: "10.66.0.1", Link.SERVER: "10.66.0.2", Link.SITE: "10.66.0.3"}
"""Where the round's parts listen."""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30)


def set_up() -> None:
    """Once in the round's own namespaces. Names of network namespaces are this round's alone."""
    _ip("link", "set", "lo", "up")
    for address in ADDRESSES.values():
        _ip("address", "add", f"{address}/32", "dev", "lo")
    subprocess.run(["mkdir", "-p", "/run/netns"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run/netns"], check=True)


class Cables:
    """The cables of one proxy."""

    def __init__(self, number: int) -> None:
        """`number` from 0, another for every proxy of the round."""
        self._namespace = f"p{number}"
        self._number = number
        _ip("netns", "add", self._namespace)
        _ip("-n", self._namespace, "link", "set", "lo", "up")
        for index, link in enumerate(Link):
            here, there = self._card(link), f"{link.value[:2]}{number}p"
            first, second = (f"10.67.{number}.{index * 4 + n}" for n in (1, 2))
            _ip("link", "add", here, "type", "veth", "peer", "name", there)
            _ip("link", "set", there, "netns", self._namespace)
            _ip("address", "add", f"{first}/30", "dev", here)
            _ip("link", "set", here, "up")
            _ip("-n", self._namespace, "address", "add", f"{second}/30", "dev", there)
            _ip("-n", self._namespace, "link", "set", there, "up")
            _ip("-n", self._namespace, "route", "add", ADDRESSES[link], "via", first, "src", second)

    def _card(self, link: Link) -> str:
        return f"{link.value[:2]}{self._number}"

    @property
    def inside(self) -> list[str]:
        """Words in front of a command that is to run behind the cables."""
        return ["nsenter", f"--net=/run/netns/{self._namespace}"]

    def pull(self, link: Link) -> None:
        _ip("link", "set", self._card(link), "down")

    def plug(self, link: Link) -> None:
        _ip("link", "set", self._card(link), "up")
