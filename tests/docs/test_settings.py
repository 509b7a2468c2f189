from __future__ import annotations

import re
from pathlib import Path

import pytest

from backup_server.config import Settings

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"
ROW = re.compile(r"^\| `(?P<name>\w+)` \| (?P<default>[^|]*) \|", re.MULTILINE)


def documented() -> dict[str, str]:
    return {row["name"]: row["default"].strip() for row in ROW.finditer(PAGE.read_text())}


def test_every_setting_is_documented_and_no_other() -> None:
    assert list(documented()) == list(Settings.model_fields)


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if name != "data_dir"])
def test_documented_defaults_are_the_defaults(name: str) -> None:
    default = Settings.model_fields[name].default
    assert documented()[name] == shown(default)


def shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value) or "empty"
