"""Reading only a share of a repository's packs, and how sure that makes one."""

from __future__ import annotations

import math
from typing import Final

CONFIDENCE: Final = 0.99
"""How sure of a find the last number in the text about a sample is."""


def window_of(pack_ids: list[bytes], start: float, share: float) -> list[bytes]:
    """The packs whose ids lie in one share of all ids, from `start` (0 to 1) on and round the end.

    Pack ids are random, so the window is a sample like any other; windows that follow each other read
    every pack once, however many packs are added or removed meanwhile.
    """
    return [
        pack_id
        for pack_id in pack_ids
        if (int.from_bytes(pack_id[:8], "big") / (1 << 64) - start) % 1.0 < share
    ]


def confidence_of(read_packs: int, packs: int) -> str:
    """What a check that read so many of so many packs, chosen at random, would have found."""
    if read_packs >= packs:
        return f"all {packs} packs were read: damage in any of them would have been found"
    share = read_packs / packs
    sentences = [
        f"in {k} pack{'s' if k > 1 else ''} with probability {1 - (1 - share) ** k:.1%}"
        for k in sorted({1, 10, packs_for(share, CONFIDENCE)})
        if k <= packs
    ]
    return (
        f"{read_packs} of {packs} packs were read ({share:.1%}): damage would have been found when it sits "
        + ", ".join(sentences)
    )


def packs_for(share: float, confidence: float) -> int:
    """In how many packs damage must sit to be found so surely, with that share of the packs read."""
    if share <= 0:
        return 1 << 62
    return math.ceil(math.log(1 - confidence) / math.log(1 - share)) if share < 1 else 1
