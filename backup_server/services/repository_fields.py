"""What a repository may be given: each field's check, with the reason in a ValueError. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

DEFAULT_BLOCK_BYTES: Final = 1 << 20
BUCKETS: Final = ("s3://", "az://", "gs://")
SCALE_OUT: Final = "scale-out:"
BLOCK_SIZES_BYTES: Final = (256 << 10, 512 << 10, 1 << 20, 4 << 20)
"""The format allows every power of two; these are those that are measured and tested end to end."""


def check_location(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith(("/", SCALE_OUT, *BUCKETS)):
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
    if isinstance(value, bool) or value not in BLOCK_SIZES_BYTES:
        choices = ", ".join(str(size) for size in BLOCK_SIZES_BYTES)
        raise ValueError(f"must be one of {choices} (256 KiB, 512 KiB, 1 MiB, 4 MiB)")
    return int(value)
