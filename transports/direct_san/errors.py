"""Errors inside of direct SAN; the package's border turns them into those of `transports.errors`."""

from __future__ import annotations


class DamagedMetadataError(Exception):
    """What was read makes no sense. ESXi may have been changing it just then: looking once more may help."""


class NotForSanError(Exception):
    """What was read is in order, and not for this mode. The message is the reason, for people."""
