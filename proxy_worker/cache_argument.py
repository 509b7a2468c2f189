"""Where a child process keeps its caches: `--cache DIRECTORY` among its arguments, put there by who started it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

_OPTION: Final = "--cache"


def cache_arguments(data_dir: Path) -> tuple[str, str]:
    """Arguments for a child of who owns this data directory."""
    return _OPTION, str(data_dir / "cache")


def cache_dir_of(arguments: Sequence[str]) -> Path | None:
    """None without the option: then indexes are kept in memory."""
    if _OPTION not in arguments:
        return None
    position = arguments.index(_OPTION) + 1
    return Path(arguments[position]) if position < len(arguments) else None
