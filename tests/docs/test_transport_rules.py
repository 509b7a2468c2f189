"""The page about the rules is their table."""

from __future__ import annotations

from pathlib import Path

from transports.rules import RULES
from transports.rules.__main__ import markdown

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "transport-rules.md"


def test_the_page_is_current() -> None:
    """Run `python -m transports.rules > docs/reference/transport-rules.md` when this fails."""
    assert PAGE.read_text() == markdown()


def test_every_rule_stands_under_each_of_its_modes() -> None:
    text = PAGE.read_text()
    for rule in RULES:
        assert text.count(f"| `{rule.id}` |") == len(rule.modes)
        assert rule.text.endswith(".")
