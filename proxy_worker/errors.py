"""What can go wrong on a proxy besides its tasks."""

from __future__ import annotations


class ProxyError(Exception):
    """Root of this package's errors. The message says what, which object, and what to do now."""


class SetupError(ProxyError):
    """Files or settings do not allow a start."""


class EnrolmentError(ProxyError):
    """The server did not take this proxy in."""


class ServerUnavailableError(ProxyError):
    """The server does not answer, or cannot now; the same request may succeed later."""


class LeaseRefusedError(ProxyError):
    """The server says that this proxy does not hold the task (any more)."""


class NotPresentedError(ProxyError):
    """The server will not make the disk reachable in that mode; another mode may do."""
