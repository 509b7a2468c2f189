"""The index of a repository, made anew from its packs."""

from __future__ import annotations

from typing import Any

from backup_server.db.tables import Repository
from backup_server.services.context import Context
from backup_server.services.shapes import by_ref


def rebuild(ctx: Context, ref: str) -> dict[str, Any]:
    """Waits for commits and prunes that are under way. Raises NotFoundError, UnavailableError and what the
    agent says.
    """
    with ctx.db.read() as s:
        row = by_ref(s, Repository, ref)
        name, repository_id = row.name, row.id
    with ctx.agents.dedicated(repository_id) as agent:
        done = agent.rebuild_index()
    return {
        "repository": name,
        "packs": int(done["packs"]),
        "blobs": int(done["blobs"]),
        "scanned_packs": int(done["scanned_packs"]),
        "unreadable": [str(each) for each in done["unreadable"]],
    }
