"""What can go wrong in a transport mode, by what the caller can do about it."""

from __future__ import annotations


class TransportError(Exception):
    """Root of this package's errors. The message says what, which object, and what to do now."""


class TransientTransportError(TransportError):
    """The same request may succeed when repeated: connection lost, host busy, time-out."""


class PermanentTransportError(TransportError):
    """Repeating changes nothing: refused, missing, not supported, no rights."""


class TransportUnavailableError(PermanentTransportError):
    """This mode cannot reach this disk from here; another mode may."""


class PeerIdentityError(PermanentTransportError):
    """The peer is not who it should be (certificate or thumbprint differs). Never retried."""


class SessionExpiredError(TransientTransportError):
    """vSphere no longer knows our session; a new one is needed before repeating."""


class ObjectGoneError(PermanentTransportError):
    """The VM, snapshot or disk no longer exists."""


class ChangeTrackingUnusableError(TransportError):
    """Changed block tracking cannot answer for this disk; read everything. The message is the reason."""


class QuiesceFailedError(TransientTransportError):
    """The guest could not be brought to a consistent state; a snapshot without quiescing may work."""


class OutOfSpaceError(PermanentTransportError):
    """A datastore is full."""
