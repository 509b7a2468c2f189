"""Long lists of ids in pieces that a statement can take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

T = TypeVar("T")
BATCH: Final = 500


def batches(items: Sequence[T], size: int = BATCH) -> Iterator[Sequence[T]]:
    return (items[i : i + size] for i in range(0, len(items), size))
