"""Sets of IP addresses as people write them: networks, ranges, single addresses, "any". Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network, summarize_address_range
from typing import Final

Address = IPv4Address | IPv6Address

ANY: Final = "any"
FORM: Final = 'a network ("192.0.2.0/24"), a range ("192.0.2.1-192.0.2.9"), an address or "any"'


@dataclass(frozen=True, slots=True)
class Range:
    """All addresses from `first` to `last`, of one IP version."""

    first: Address
    last: Address

    def __contains__(self, address: Address) -> bool:
        return self.first.version == address.version and int(self.first) <= int(address) <= int(
            self.last
        )


def parse_address(text: str) -> Address:
    """An address without its prefix length and scope; IPv4 in the dress of IPv6 is IPv4. ValueError."""
    found = ip_address(text.strip().partition("/")[0].partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found


def addresses_of(texts: Iterable[str]) -> frozenset[Address]:
    """Of what a proxy told ("192.0.2.7/24"), but for what is no address, and for those that are every machine's own."""
    found = set()
    for text in texts:
        try:
            found.add(parse_address(text))
        except ValueError:
            continue
    return frozenset(address for address in found if not address.is_loopback)


def parse_ranges(texts: Iterable[str]) -> tuple[Range, ...]:
    """ValueError that names the text that is none."""
    return tuple(found for text in texts for found in _parse(text))


def normal_form(text: str) -> str:
    """How it is stored and shown. ValueError."""
    cleaned = text.strip().lower()
    if cleaned == ANY:
        return ANY
    (found,) = _parse(cleaned)
    if found.first == found.last:
        return str(found.first)
    if found.first.version == found.last.version == 4:  # noqa: PLR2004 - IP versions
        networks = list(summarize_address_range(IPv4Address(found.first), IPv4Address(found.last)))
    else:
        networks = list(summarize_address_range(IPv6Address(found.first), IPv6Address(found.last)))  # type: ignore[arg-type]
    return str(networks[0]) if len(networks) == 1 else f"{found.first}-{found.last}"


def _parse(text: str) -> Sequence[Range]:
    cleaned = text.strip().lower()
    if cleaned == ANY:
        return [_range("0.0.0.0", "255.255.255.255"), _range("::", "ffff:" * 7 + "ffff")]  # noqa: S104 - no socket
    try:
        if "-" in cleaned:
            first, _, last = cleaned.partition("-")
            return [_range(first.strip(), last.strip())]
        network = ip_network(cleaned)
    except ValueError as error:
        raise ValueError(f"{text!r} is neither {FORM}: {error}") from None
    return [Range(network[0], network[-1])]


def _range(first: str, last: str) -> Range:
    found = Range(ip_address(first), ip_address(last))
    if found.first.version != found.last.version:
        raise ValueError("it begins and ends in different versions of IP")
    if int(found.last) < int(found.first):
        raise ValueError("it ends before it begins")
    return found


def any_in(ranges: Iterable[Range], addresses: Collection[Address]) -> bool:
    return any(address in one for one in ranges for address in addresses)


def between(
    source: Sequence[Range],
    target: Sequence[Range],
    here: Collection[Address],
    there: Collection[Address],
) -> bool:
    """Whether traffic between two machines goes from one set to the other, in either direction. Nothing crosses a
    network between the ends of one machine.
    """
    if on_one_machine(here, there):
        return False
    return (any_in(source, here) and any_in(target, there)) or (
        any_in(source, there) and any_in(target, here)
    )


def on_one_machine(here: Collection[Address], there: Collection[Address]) -> bool:
    return any(address.is_loopback for address in there) or not set(here).isdisjoint(there)
