"""The form of a rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from transports.base import TransportMode
from transports.rules.facts import DiskFacts, ProxyMachine, Reach


class Use(StrEnum):
    READ = "read"
    WRITE = "write"
    BOTH = "read, write"

    def covers(self, *, write: bool) -> bool:
        return self is Use.BOTH or (self is Use.WRITE) == write


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskRule:
    """About the disk alone."""

    id: str
    """Stable name, for records and for people who look it up."""
    modes: frozenset[TransportMode]
    use: Use = Use.BOTH
    text: str
    """The requirement or limitation, for the reference page."""
    check: Callable[[DiskFacts], str]
    """The obstacle, in words; empty: there is none."""
    remark: bool = False
    """What it says is worth knowing, and refuses nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyRule:
    """About a disk and a proxy."""

    id: str
    modes: frozenset[TransportMode]
    use: Use = Use.BOTH
    text: str
    check: Callable[[Reach, ProxyMachine, TransportMode], str]
    remark: bool = False


Rule = DiskRule | ProxyRule
