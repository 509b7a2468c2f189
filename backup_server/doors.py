"""Addresses at which doors listen, as settings write them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from backup_server.errors import SettingsError

SETTINGS_FILE: Final = "vmhaul.toml"
"""In the data directory."""
PROXIES_PORT: Final = 8471


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    host: str
    port: int


def parse_door(text: str) -> Door:
    """ADDRESS, ADDRESS:PORT, [IPV6] or [IPV6]:PORT, as `proxies_listen` has it."""
    host, port = text.strip(), ""
    if host.startswith("["):
        host, bracket, rest = host[1:].partition("]")
        good = bool(bracket) and (not rest or rest.startswith(":"))
        port = rest[1:]
    else:
        good = True
        if host.count(":") == 1:
            host, _, port = host.partition(":")
    if not good or not host or (port and (not port.isdecimal() or int(port) > 65535)):  # noqa: PLR2004
        raise SettingsError(
            f"proxies_listen {text!r} is not ADDRESS or ADDRESS:PORT, as in 192.0.2.10:{PROXIES_PORT}"
        )
    return Door(host=host, port=int(port) if port else PROXIES_PORT)
