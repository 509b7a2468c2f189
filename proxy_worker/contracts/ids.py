"""Identifiers that server and proxy share. All are UUIDs in text unless said otherwise."""

from __future__ import annotations

from typing import NewType

JobId = NewType("JobId", str)
SessionId = NewType("SessionId", str)
TaskId = NewType("TaskId", str)
ProxyId = NewType("ProxyId", str)
Attempt = NewType("Attempt", int)
"""Counts from 1; the fencing token of a task."""
