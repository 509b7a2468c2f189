from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from proxy_worker.config import ProxySettings

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "proxy-settings.md"


def test_the_page_has_every_setting_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", PAGE.read_text(), re.MULTILINE))
    assert rows == {
        item.name: f'"{item.default}"' if isinstance(item.default, str) else f"{item.default:g}"
        for item in fields(ProxySettings)
    }
