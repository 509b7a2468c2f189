"""What a host's refusals mean for the caller."""

from __future__ import annotations

from typing import Final

from transports.errors import PermanentTransportError, TransientTransportError, TransportError
from transports.network.wire import MEMORY_ERROR, PERMISSION_ERROR


class HostRefusedError(Exception):
    """The host answered an operation with an ERROR record. Stays inside this package."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"error {code}: {text or 'no text'}")
        self.code = code
        self.text = text


class HandshakeRefusedError(TransientTransportError):
    """The host ended the handshake; it may take the shorter one of older hosts."""


class SessionRefusedError(TransientTransportError):
    """The host refused the session's buffers; it may take smaller ones."""


# (part of the host's text, error class, what to do); the first that fits.
_TEXTS: Final[tuple[tuple[str, type[TransportError], str], ...]] = (
    (
        "multiwriter mode",
        PermanentTransportError,
        "the file is the one that the running VM writes to: open the snapshot's file, or power the VM off",
    ),
    (
        "failed to lock",
        TransientTransportError,
        "another reader or writer holds the file; try again when it has finished",
    ),
    (
        "failed to allocate",
        TransientTransportError,
        "the host's memory for NFC is used up: lower the number of disks read from it at a time",
    ),
    (
        "permission check failed",
        PermanentTransportError,
        "the path is not a file of this VM, or the account may not open it so",
    ),
)


def refusal(refused: HostRefusedError, doing: str, *, repeat: bool) -> TransportError:
    """The error for the caller. `repeat`: a refusal of unknown meaning is worth another try."""
    text = refused.text.lower()
    for part, error, advice in _TEXTS:
        if part in text:
            return error(f"cannot {doing}: the host said {refused}; {advice}")
    if refused.code == PERMISSION_ERROR:
        return PermanentTransportError(
            f"cannot {doing}: the host said {refused}; the access is not permitted"
        )
    error = (
        TransientTransportError if repeat or refused.code == MEMORY_ERROR else PermanentTransportError
    )
    return error(f"cannot {doing}: the host said {refused}")
