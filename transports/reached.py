"""What a proxy finds when it looks for a datastore."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """What a probe of one datastore found."""

    readable: bool
    writable: bool
    hops: int = -1
    """Routers on the way; -1: not known."""
    reason: str = ""
    """Why not; empty when it is reached for reading and writing."""
    portals: tuple[str, ...] = ()
    """IP addresses through which its LUNs are reached; empty: through none, or none is known."""
