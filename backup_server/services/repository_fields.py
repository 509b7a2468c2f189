"""What a repository may be given: each field's check, with the reason in a ValueError. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

DEFAULT_BLOCK_BYTES: Final = 1 << 20
BUCKETS: Final = ("s3://", "az://", "gs://")
MIN_BLOCK_BYTES: Final = 1 << 16
MAX_BLOCK_BYTES: Final = 1 << 24


def check_location(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith(("/", *BUCKETS)):
        raise ValueError(
            "must be an absolute path of a directory, as server and proxies see it, or the URL of a bucket "
            f"({', '.join(BUCKETS)})"
        )
    if value.startswith(BUCKETS) and "@" in value.partition("?")[0]:
        raise ValueError("must hold no secrets; they are given apart")
    return value


def is_inside(location: str, directory: Path) -> bool:
    return location.startswith("/") and Path(location).resolve().is_relative_to(directory.resolve())


def check_block(value: Any) -> int:
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or not MIN_BLOCK_BYTES <= value <= MAX_BLOCK_BYTES
        or value & (value - 1)
    ):
        raise ValueError(f"must be a power of two from {MIN_BLOCK_BYTES} to {MAX_BLOCK_BYTES}")
    return value
