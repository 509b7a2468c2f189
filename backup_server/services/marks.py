"""The mark that each of our snapshots bears, and how it is recognised. Pure.

Name: `vmhaul-backup <intent id>`. Description: JSON `{"vmhaul": server id, "intent": id, "session": id}`.
Only when both agree, and the server id is ours, a snapshot is ours. A person who renames one takes it
away from us, on purpose.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from transports.vsphere.model import SnapshotInfo

PREFIX: Final = "vmhaul-backup "


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    server_id: str
    intent_id: str
    session_id: str


def snapshot_name(intent_id: str) -> str:
    return PREFIX + intent_id


def snapshot_description(mark: Mark) -> str:
    return json.dumps({"vmhaul": mark.server_id, "intent": mark.intent_id, "session": mark.session_id})


def read_mark(name: str, description: str) -> Mark | None:
    """The mark of a snapshot, or None when it has none or name and description disagree."""
    if not name.startswith(PREFIX):
        return None
    try:
        data = json.loads(description)
    except ValueError:
        return None
    if not isinstance(data, dict):
        return None
    found = [data.get(field, "") for field in ("vmhaul", "intent", "session")]
    if not all(isinstance(value, str) for value in found):
        return None
    mark = Mark(server_id=found[0], intent_id=found[1], session_id=found[2])
    return mark if name == snapshot_name(mark.intent_id) else None


def ours(snapshots: Iterable[SnapshotInfo], server_id: str) -> list[tuple[SnapshotInfo, Mark]]:
    """The snapshots that this server made, deepest first (a child before what it stands on)."""
    found = []
    for snapshot in snapshots:
        mark = read_mark(snapshot.name, snapshot.description)
        if mark is not None and mark.server_id == server_id:
            found.append((snapshot, mark))
    return found[::-1]


def restored_vm_mark(server_id: str, intent_id: str) -> str:
    return f"vmhaul:{server_id}:{intent_id}"
