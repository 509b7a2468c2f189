from __future__ import annotations

import pytest

from backup_server.doors import PROXIES_PORT, Door, parse_door
from backup_server.errors import SettingsError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("192.0.2.1", "192.0.2.1", PROXIES_PORT),
        ("192.0.2.1:9000", "192.0.2.1", 9000),
        ("backup.example:0", "backup.example", 0),
        ("::", "::", PROXIES_PORT),
        ("[2001:db8::1]", "2001:db8::1", PROXIES_PORT),
        ("[2001:db8::1]:9000", "2001:db8::1", 9000),
        (" 0.0.0.0 ", "0.0.0.0", PROXIES_PORT),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert parse_door(text) == Door(host=host, port=port)


@pytest.mark.parametrize("text", [":9000", "x:port", "x:70000", "[::1", "[::1]9000", " "])
def test_what_is_none(text: str) -> None:
    with pytest.raises(SettingsError, match="proxies_listen"):
        parse_door(text)
