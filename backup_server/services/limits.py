"""Limits that several tasks share: which of them a task counts against, and how full they are.

Keys as in the claim index: `p:<proxy>` slots, `r:<repository>`, `d:<vcenter>/<datastore>`, `h:<vcenter>/<host>` the NFC
service of a host, `a:<proxy>` disks that may be attached to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, cast

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.config import Settings
from backup_server.db.states import TaskState
from backup_server.db.tables import Repository, Task
from backup_server.services import datastore_loads
from backup_server.services.placement import Limit
from backup_server.services.proxy_facts import task_host
from proxy_worker.contracts.messages import TaskKind
from transports.rules import NETWORK_MODES

PROXY: Final = "p:"
REPOSITORY: Final = "r:"
DATASTORE: Final = "d:"
HOST: Final = "h:"
ATTACHED: Final = "a:"


def task_keys(row: Task, repositories: Mapping[str, str]) -> tuple[str, ...]:
    """Limit keys of a task that do not depend on who takes it; the host's is last. `repositories`: id inside the
    repository -> row id, for copies, which count against the repository that they read as well.
    """
    keys = [REPOSITORY + row.repository_id]
    if row.kind == TaskKind.COPY_DISK.value:
        source = repositories.get(str((row.order.get("source") or {}).get("repository_id", "")))
        if source and source != row.repository_id:
            keys.append(REPOSITORY + source)
    if row.datastore:
        keys.append(DATASTORE + row.datastore)
    host = task_host(row)
    if host:
        keys.append(HOST + host)
    return tuple(keys)


def repository_rows(db: DbSession) -> dict[str, str]:
    """Id inside the repository -> row id."""
    rows = db.execute(sa.select(Repository.id, Repository.repository_id))
    return {row.repository_id: row.id for row in rows}


def limit_name(key: str, repositories: Mapping[str, str]) -> str:
    """For people. `repositories`: names by row id."""
    kind, _, rest = key.partition(":")
    own = rest.partition("/")[2] or rest
    return {
        "r": f"repository {repositories.get(rest, rest)}",
        "d": f"datastore {own}",
        "h": f"the NFC service of host {own}",
    }.get(kind, key)


# ---- as SQL counts at this moment -----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A task that runs, with what it holds."""

    task_id: str
    title: str
    proxy_id: str
    keys: tuple[str, ...]
    ends_at: datetime | None
    """If it goes on as fast as now; None: not known yet."""


_OF_RUNNING: Final = (
    Task.id,
    Task.title,
    Task.kind,
    Task.proxy_id,
    Task.mode,
    Task.progress,
    Task.repository_id,
    Task.datastore,
    Task.vcenter_id,
    Task.host_moref,
    # Orders are long, and copies alone say in them what they count against.
    sa.type_coerce(
        sa.case((Task.kind == TaskKind.COPY_DISK.value, Task.order), else_=sa.null()), sa.JSON
    ).label("order"),
)


def running_now(s: DbSession, now: datetime) -> list[Running]:
    """No more than the fleet has slots; of each row what is looked at, and no more."""
    found = s.execute(sa.select(*_OF_RUNNING).where(Task.state == TaskState.RUNNING.value)).all()
    rows = cast("Sequence[Task]", found)
    repositories = repository_rows(s)
    network = {mode.value for mode in NETWORK_MODES}
    answer = []
    for row in rows:
        in_use = (row.progress or {}).get("mode") or row.mode
        keys = [
            key for key in task_keys(row, repositories) if in_use in network or not key.startswith(HOST)
        ]
        answer.append(
            Running(
                task_id=row.id,
                title=row.title,
                proxy_id=row.proxy_id or "",
                keys=(f"{PROXY}{row.proxy_id}", *keys),
                ends_at=_ends_at(row.progress or {}, now),
            )
        )
    return answer


def _ends_at(progress: Mapping[str, Any], now: datetime) -> datetime | None:
    left = int(progress.get("total_bytes") or 0) - int(progress.get("done_bytes") or 0)
    speed = float(progress.get("bytes_per_s") or 0)
    return now + timedelta(seconds=left / speed) if left > 0 and speed > 0 else None


def limits_of(
    s: DbSession, settings: Settings, row: Task, running: Sequence[Running], now: datetime
) -> list[Limit]:
    """What a task counts against, as full as `running` makes it."""
    used = Counter(key for one in running for key in one.keys)
    found = s.execute(sa.select(Repository.id, Repository.name, Repository.max_tasks)).all()
    names = {one.id: one.name for one in found}
    most = {REPOSITORY + one.id: one.max_tasks for one in found}
    loads = datastore_loads.read(s, settings, now)
    limits = []
    for key in task_keys(row, repository_rows(s)):
        maximum = most.get(key, 0)
        if key.startswith(DATASTORE):
            maximum = loads.max_tasks(key.removeprefix(DATASTORE))
        elif key.startswith(HOST):
            maximum = settings.host_nfc_tasks
        limits.append(
            Limit(
                key=key,
                what=limit_name(key, names),
                used=used[key],
                maximum=maximum,
                modes=NETWORK_MODES if key.startswith(HOST) else None,
                closed=loads.closed.get(key, ""),
            )
        )
    return limits
