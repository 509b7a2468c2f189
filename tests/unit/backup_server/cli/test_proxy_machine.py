from __future__ import annotations

import pytest

from backup_server.cli.exits import CliError, Exit
from backup_server.cli.proxy_machine import parse_target

TARGETS = [
    ("root@px1", ("root", "px1", 22)),
    ("ops@px1.example.com:2222", ("ops", "px1.example.com", 2222)),
    ("root@[2001:db8::1]:2222", ("root", "2001:db8::1", 2222)),
    ("root@[2001:db8::1]", ("root", "2001:db8::1", 22)),
    ("root@2001:db8::1", ("root", "2001:db8::1", 22)),
    ("a@domain@px1", ("a@domain", "px1", 22)),
]


@pytest.mark.parametrize(("text", "parts"), TARGETS)
def test_targets(text: str, parts: tuple[str, str, int]) -> None:
    assert parse_target(text) == parts


@pytest.mark.parametrize("text", ["px1", "@px1", "root@", "root@px1:ssh"])
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(CliError) as caught:
        parse_target(text)
    assert caught.value.code is Exit.USAGE
