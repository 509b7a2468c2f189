"""Which transport modes a disk may be read in, best first, and why not the others. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from transports.base import TransportMode

EXISTING_MODES: Final = (TransportMode.NBDSSL, TransportMode.NBD)
"""What this release can do; the registry has a driver for each."""

# Data in clear on the network is never chosen, only asked for.
_ON_REQUEST: Final = frozenset({TransportMode.NBD})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeVerdict:
    mode: TransportMode
    usable: bool
    reason: str
    """Why it is usable or not, for the record of the decision."""


def judge_modes(
    *, wanted: Collection[TransportMode], offered: Collection[TransportMode]
) -> tuple[ModeVerdict, ...]:
    """A verdict on every mode, in the order of preference.

    `wanted`: the job's modes (empty: any that is chosen without asking). `offered`: the proxy's.
    """
    return tuple(_judge(mode, wanted, offered) for mode in TransportMode)


def usable_modes(
    *, wanted: Collection[TransportMode], offered: Collection[TransportMode]
) -> tuple[TransportMode, ...]:
    """The modes to try, best first."""
    return tuple(v.mode for v in judge_modes(wanted=wanted, offered=offered) if v.usable)


def _judge(
    mode: TransportMode, wanted: Collection[TransportMode], offered: Collection[TransportMode]
) -> ModeVerdict:
    if mode not in EXISTING_MODES:
        return ModeVerdict(mode=mode, usable=False, reason="not part of this release")
    if wanted and mode not in wanted:
        return ModeVerdict(mode=mode, usable=False, reason="the job does not allow it")
    if not wanted and mode in _ON_REQUEST:
        return ModeVerdict(
            mode=mode, usable=False, reason="sends data in clear: used only where the job names it"
        )
    if mode not in offered:
        return ModeVerdict(mode=mode, usable=False, reason="the proxy does not offer it")
    return ModeVerdict(mode=mode, usable=True, reason="reaches every disk of a host on the network")
