"""Repositories as the doors show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import SessionKind
from backup_server.db.tables import Repository, RestorePointRow
from backup_server.services import repository_facts
from backup_server.services.repository_agent import days_of
from backup_server.services.shapes import when


def point_counts(s: DbSession) -> dict[str, int]:
    rows = s.execute(
        sa.select(RestorePointRow.repository_id, sa.func.count())
        .where(RestorePointRow.deleting.is_(False))
        .group_by(RestorePointRow.repository_id)
    )
    return {repository_id: int(count) for repository_id, count in rows}


def repository_shapes(s: DbSession, rows: Sequence[Repository]) -> list[dict[str, Any]]:
    """The API's Repository, for each."""
    counts = point_counts(s)
    checks = repository_facts.last_sessions(s, SessionKind.CHECK)
    prunes = repository_facts.last_sessions(s, SessionKind.PRUNE)
    return [
        {
            **_own(row),
            **_facts(row.settings.get(repository_facts.FACTS) or {}),
            "restore_points": counts.get(row.id, 0),
            "last_check": repository_facts.session_facts(checks.get(row.id)),
            "last_prune": repository_facts.session_facts(prunes.get(row.id)),
        }
        for row in rows
    ]


def _own(row: Repository) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "repository_id": row.repository_id,
        "location": row.location,
        "block_size_bytes": row.block_size_bytes,
        "max_tasks": row.max_tasks,
        "total_bytes": row.total_bytes,
        "free_bytes": row.free_bytes,
        "space_at": when(row.space_at),
        "storage_secrets": row.storage_credential_id is not None,
        "immutable_days": days_of(row),
        "verification": row.settings.get("verification"),
        "next_check_at": when(row.next_check_at),
        "created_at": when(row.created_at),
    }


def _facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    stored, read = facts.get("stored_bytes"), facts.get("read_bytes")
    logical = facts.get("logical_bytes")
    return {
        "facts_at": facts.get("at"),
        "stored_bytes": stored,
        "read_bytes": read,
        "logical_bytes": logical,
        # How many bytes of restore points one stored byte stands for.
        "reduction": logical / stored if logical and stored else None,
        "packs": facts.get("packs"),
        "features": facts.get("features"),
        "key_epoch": facts.get("key_epoch"),
        "keys": facts.get("keys"),
        "aead": facts.get("aead"),
    }
