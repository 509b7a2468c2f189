"""Every proxy and every server in a network namespace of its own, with one cable for each thing that it talks to.

The round's own namespace holds everything else, and passes on what goes from one of them to another. A cable is a pair
of virtual network cards; pulled, it carries nothing and nobody is told: connections stay open and what is sent gets
lost, as with a dead switch.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final

from tests.chaos.plan import Link

ADDRESSES: Final = {
    Link.BROKER: "10.66.0.1",
    Link.SERVER: "10.66.0.2",
    Link.SITE: "10.66.0.3",
    Link.OBJECTS: "10.66.0.4",
    Link.DATABASE: "10.66.0.5",
}
"""Where the round's parts listen; servers behind cables of their own: see `server_address`."""
_SERVERS: Final = "10.66.1.0/24"
_LINES: Final = "10.67.0.0/16"
"""The cables' own networks, of four addresses each."""


def server_address(number: int) -> str:
    """Of server `number` from 0, where it has cables."""
    return f"10.66.1.{number + 1}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30)


def set_up() -> None:
    """Once in the round's own namespaces. Names of network namespaces are this round's alone."""
    _ip("link", "set", "lo", "up")
    for address in ADDRESSES.values():
        _ip("address", "add", f"{address}/32", "dev", "lo")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    for network in (_SERVERS, _LINES):
        # What goes to somebody whose cable is pulled gets lost; nobody is told.
        _ip("route", "add", "blackhole", network)
    subprocess.run(["mkdir", "-p", "/run/netns"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run/netns"], check=True)


class Cables:
    """The cables of one proxy, or of one server."""

    def __init__(self, number: int, *, server: int | None = None, site: Sequence[str] = ()) -> None:
        """`number` from 0, another for each of the round. `server`: of that server, from 0. `site`: further addresses
        that the cable to the site leads to.
        """
        self._namespace = f"n{number}"
        self._own = ""
        self._ends: dict[Link, tuple[str, str]] = {}
        """(here, there): the addresses of each cable's ends."""
        _ip("netns", "add", self._namespace)
        _ip("-n", self._namespace, "link", "set", "lo", "up")
        for index, link in enumerate(Link):
            self._lay(link, number * len(Link) + index)
        for address in site:
            self._lead(Link.SITE, address)
        if server is None:
            self._lead(Link.SERVER, _SERVERS)
        else:
            self._own = server_address(server)
            _ip("-n", self._namespace, "address", "add", f"{self._own}/32", "dev", "lo")
            self._lead_here()
            self._lead(Link.SERVER, "default", source=self._own)

    def _lay(self, link: Link, line: int) -> None:
        here, there = self._card(link), f"{link.value[:2]}-p"
        first, second = (str(IPv4Network(_LINES)[line * 4 + n]) for n in (1, 2))
        self._ends[link] = (first, second)
        _ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", self._namespace)
        _ip("address", "add", f"{first}/30", "dev", here)
        _ip("link", "set", here, "up")
        _ip("-n", self._namespace, "address", "add", f"{second}/30", "dev", there)
        _ip("-n", self._namespace, "link", "set", there, "up")
        self._lead(link, ADDRESSES[link])

    def _lead(self, link: Link, address: str, *, source: str = "") -> None:
        first, second = self._ends[link]
        _ip("-n", self._namespace, "route", "add", address, "via", first, "src", source or second)

    def _lead_here(self) -> None:
        _ip("route", "replace", self._own, "via", self._ends[Link.SERVER][1])

    def _card(self, link: Link) -> str:
        return f"{link.value[:2]}-{self._namespace}"

    @property
    def inside(self) -> list[str]:
        """Words in front of a command that is to run behind the cables."""
        return ["nsenter", f"--net=/run/netns/{self._namespace}"]

    def pull(self, link: Link) -> None:
        _ip("link", "set", self._card(link), "down")

    def plug(self, link: Link) -> None:
        _ip("link", "set", self._card(link), "up")
        if link is Link.SERVER and self._own:
            self._lead_here()  # that way went with the card
