"""Canonical JSON: one text for one value."""

from __future__ import annotations

import json
from typing import Any

from pipeline.errors import IntegrityError


def to_canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def from_canonical(data: bytes, what: str) -> dict[str, Any]:
    """Raises IntegrityError unless `data` is the canonical JSON of an object."""
    try:
        value = json.loads(data)
        if isinstance(value, dict) and to_canonical(value) == data:
            return value
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{what} is damaged: not JSON") from error
    raise IntegrityError(f"{what} is damaged: not canonical JSON")
