"""`python -m transports.rules` prints docs/reference/transport-rules.md; a test compares the two."""

from __future__ import annotations

from transports.base import TransportMode
from transports.rules import DISK_RULES, RULES, Rule

_HEAD = """# Rules of the transport modes

Every requirement and limitation that decides whether a proxy may open a disk in a mode; `vmhaul task why` and `vmhaul job plan`
name the ones that refused. How the choice is made among what is left: [choosing.md](../explanation/choosing.md). This page is
printed by `python -m transports.rules`.

A rule about the **disk** holds for every proxy; one about the **proxy** is asked for each. A **remark** refuses nothing.
"""


def markdown() -> str:
    """The whole page."""
    parts = [_HEAD]
    for mode in TransportMode:
        parts.append(f"\n## {mode.value}\n\n| rule | about | when | what |\n|---|---|---|---|\n")
        parts += [_row(rule) for rule in RULES if mode in rule.modes]
    return "".join(parts)


def _row(rule: Rule) -> str:
    about = "disk" if rule in DISK_RULES else "proxy"
    kind = f"{about}, remark" if rule.remark else about
    return f"| `{rule.id}` | {kind} | {rule.use.value} | {rule.text} |\n"


if __name__ == "__main__":
    print(markdown(), end="")  # noqa: T201 - this is what the command is for
