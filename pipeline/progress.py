"""How far a backup or a restore is."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.model import StageTimes


@dataclass(frozen=True, slots=True, kw_only=True)
class MoverProgress:
    total_bytes: int
    """What will have to be read (backup) or written (restore)."""
    done_bytes: int
    """Of these; an earlier attempt's part included."""
    read_bytes: int
    """From the transport mode (backup) or from the repository (restore)."""
    stored_bytes: int
    """Into the repository (backup) or into the disk (restore)."""
    elapsed_s: float
    """Of this attempt."""
    stages: StageTimes
