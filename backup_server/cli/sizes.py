"""Sizes that people type."""

from __future__ import annotations

import math
from typing import Final

from backup_server.cli.exits import CliError, Exit

_FACTORS: Final = {
    "": 1,
    "b": 1,
    **{
        name: 1024**power
        for power, letter in enumerate("kmgt", start=1)
        for name in (letter, letter + "ib")
    },
    **{letter + "b": 1000**power for power, letter in enumerate("kmgt", start=1)},
}


def parse_size(text: str) -> int:
    """Bytes of "1MiB", "512K" or "4194304"; CliError (usage) for anything else."""
    cleaned = text.strip().lower()
    digits = cleaned.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = cleaned[len(digits) :].strip()
    try:
        count = float(digits) * _FACTORS[unit]
    except (ValueError, KeyError) as error:
        raise CliError(f"'{text}' is not a size; write for example 1MiB or 512K", Exit.USAGE) from error
    if not math.isfinite(count) or count <= 0 or count != int(count):
        raise CliError(f"'{text}' is not a whole number of bytes above zero", Exit.USAGE)
    return int(count)


def parse_share(text: str, option: str) -> float:
    """0.05 of "5%" or "0.05"; CliError (usage) for what is not above 0 and up to all."""
    cleaned = text.strip()
    try:
        share = float(cleaned[:-1]) / 100 if cleaned.endswith("%") else float(cleaned)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise CliError(f"{option} '{text}' is no share, as in 5% or 0.05", Exit.USAGE)
    return share
