"""A figure that monitoring may ask for, and one value of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    name: str
    """Counters are shown with "_total" behind it."""
    kind: str
    """gauge or counter."""
    text: str
    labels: tuple[str, ...] = ()


class Sample(NamedTuple):
    name: str
    labels: tuple[str, ...]
    """Values, in the order of the figure's labels."""
    value: float


Samples = Iterator[Sample]
