"""Identifiers of things in a repository."""

from __future__ import annotations

from typing import NewType

RepositoryId = NewType("RepositoryId", str)
"""UUID, 36 characters, made when the repository is."""

RestorePointId = NewType("RestorePointId", str)
"""UUID, 36 characters, chosen by the server before the backup starts, so that a commit that is
repeated is the same commit."""

BlobId = NewType("BlobId", str)
"""Keyed hash of a blob's content, 64 hexadecimal digits. 64 zeros name a range of zeros."""
