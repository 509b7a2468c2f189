"""Backup repositories: made or imported through their agent, forgotten without touching data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError as DuplicateError

from backup_server.db.states import SessionKind, SessionState
from backup_server.db.tables import Job, Repository, RestorePointRow, Session, Task, new_id
from backup_server.errors import ConflictError, InvalidError
from backup_server.services import (
    catalogue,
    repository_facts,
    repository_storage,
    sessions,
    verification,
)
from backup_server.services.context import Context
from backup_server.services.repository_agent import (
    OpenedRepository,
    RepositoryAccess,
    StorageAccess,
    create_repository,
    open_repository,
)
from backup_server.services.repository_fields import (
    DEFAULT_BLOCK_BYTES,
    check_block,
    check_location,
    is_inside,
)
from backup_server.services.repository_shapes import repository_shapes
from backup_server.services.shapes import Fields, by_ref
from transports.vsphere.model import Secret

MAX_TASKS: Final = 10_000
MIN_PASSWORD_CHARS: Final = 8


def list_all(ctx: Context) -> list[dict[str, Any]]:
    with ctx.db.read() as s:
        rows = s.scalars(sa.select(Repository).order_by(Repository.name)).all()
        return repository_shapes(s, rows)


def get(ctx: Context, ref: str) -> dict[str, Any]:
    with ctx.db.read() as s:
        [shape] = repository_shapes(s, [by_ref(s, Repository, ref)])
        return shape


def add(
    ctx: Context,
    *,
    name: str,
    location: str,
    password: Secret,
    block_size_bytes: int | None = None,
    max_tasks: int | None = None,
    import_existing: bool = False,
    storage_secrets: Mapping[str, str] | None = None,
    immutable_days: int = 0,
) -> dict[str, Any]:
    """Make a repository at `location`, or import the one that is there with its restore points."""
    given = Fields(
        {
            "name": name,
            "location": location,
            "block_size_bytes": block_size_bytes or DEFAULT_BLOCK_BYTES,
            "max_tasks": max_tasks or ctx.settings.repository_max_tasks,
            "storage_secrets": storage_secrets,
            "immutable_days": immutable_days,
        }
    )
    name = given.path_name()
    location = given.text("location")
    given.checked("location", check_location)
    if is_inside(location, ctx.settings.data_dir):
        given.wrong(
            "location",
            f"lies in the server's data directory {ctx.settings.data_dir}; a loss of that must not cost "
            "the restore points too, choose another directory",
        )
    block = given.checked("block_size_bytes", check_block)
    tasks = given.number("max_tasks", low=1, high=MAX_TASKS)
    if not import_existing and len(password.reveal()) < MIN_PASSWORD_CHARS:
        given.wrong("password", f"must have at least {MIN_PASSWORD_CHARS} characters")
    secrets = given.checked("storage_secrets", repository_storage.check_secrets)
    days = given.checked("immutable_days", repository_storage.check_days)
    given.finish("the repository")
    storage = StorageAccess(secrets=secrets, immutable_days=days)
    _refuse_taken_name(ctx, name)  # before anything is made on the disk
    opened = _reach(ctx, location, password, block, storage, import_existing=import_existing)
    now = ctx.clock()
    try:
        with ctx.db() as s:
            row = Repository(
                id=new_id(),
                name=name,
                repository_id=opened.repository_id,
                location=location,
                credential_id=ctx.credentials.store(s, "repository", password, now),
                block_size_bytes=opened.block_size_bytes,
                max_tasks=tasks,
                total_bytes=None,
                free_bytes=None,
                space_at=None,
                created_at=now,
            )
            repository_storage.store(ctx, s, row, storage, now)
            s.add(row)
    except DuplicateError:
        raise ConflictError(
            f"the repository at {location} (id {opened.repository_id}) or the name {name!r} "
            "is registered already; `vmhaul repository list` shows it"
        ) from None
    if import_existing:
        catalogue.rebuild(ctx, row.id)
    refresh_space(ctx, row.id)
    return get(ctx, row.id)


def _refuse_taken_name(ctx: Context, name: str) -> None:
    with ctx.db.read() as s:
        if s.scalar(sa.select(Repository.id).where(Repository.name == name)) is not None:
            raise ConflictError(f"a repository named {name!r} exists already; give another name")


def _reach(
    ctx: Context,
    location: str,
    password: Secret,
    block: int,
    storage: StorageAccess,
    *,
    import_existing: bool,
) -> OpenedRepository:
    timeout_s = ctx.agents.timeout_s
    link = ctx.agents.start()
    try:
        if import_existing:
            access = RepositoryAccess(
                location=location, password=password, repository_id="", storage=storage
            )
            return open_repository(link, access, timeout_s=timeout_s)
        return create_repository(link, location, password, block, timeout_s=timeout_s, storage=storage)
    except ConflictError as error:
        raise InvalidError(str(error), details={"location": str(error)}) from error
    finally:
        link.close()


def edit(ctx: Context, ref: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Change name, max_tasks, verification (null ends its schedule), storage_secrets or immutable_days."""
    given = Fields(changes)
    storage = repository_storage.change(ctx, ref, given)
    values: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    if given.has("name"):
        values["name"] = given.path_name()
    if given.has("max_tasks"):
        values["max_tasks"] = given.number("max_tasks", low=1, high=MAX_TASKS)
    if given.has("verification"):
        settings[verification.SETTING] = given.checked("verification", verification.check_verification)
    given.finish("the change of the repository")
    try:
        with ctx.db() as s:
            row = by_ref(s, Repository, ref)
            # Settings are written as a whole: nothing that was written since they were read may be undone.
            s.refresh(row, with_for_update=True)
            if settings:
                row.settings = {**row.settings, **settings}
                row.next_check_at = verification.next_check(row.settings, ctx.clock())
            for field_name, value in values.items():
                setattr(row, field_name, value)
            if storage is not None:
                repository_storage.store(ctx, s, row, storage, ctx.clock())
    except DuplicateError:
        raise ConflictError(f"a repository named {values['name']!r} exists already") from None
    if storage is not None:
        ctx.agents.forget(row.id)  # the next call opens it with what is stored now
    ctx.wake_dispatcher.set()
    return get(ctx, row.id)


def remove(ctx: Context, ref: str) -> None:
    """Forget the repository: its data stay where they are and can be imported again."""
    with ctx.db() as s:
        row = by_ref(s, Repository, ref)
        jobs = s.scalars(
            sa.select(Job.name).where(
                sa.or_(Job.repository_id == row.id, Job.source_repository_id == row.id)
            )
        ).all()
        if jobs:
            raise ConflictError(
                f"repository {row.name!r} is used by job {', '.join(jobs)}; delete or change the job first"
            )
        busy = s.scalar(
            sa.select(sa.func.count())
            .select_from(Session)
            .where(Session.repository_id == row.id, Session.state != SessionState.FINISHED.value)
        )
        if busy:
            raise ConflictError(
                f"repository {row.name!r} is used by a session; wait for it or cancel it"
            )
        credential, storage_credential = row.credential_id, row.storage_credential_id
        s.execute(sa.delete(RestorePointRow).where(RestorePointRow.repository_id == row.id))
        s.execute(sa.delete(Task).where(Task.repository_id == row.id))
        s.execute(sa.update(Session).where(Session.repository_id == row.id).values(repository_id=None))
        s.delete(row)
        s.flush()
        ctx.credentials.forget(s, credential)
        if storage_credential is not None:
            ctx.credentials.forget(s, storage_credential)
    ctx.agents.forget(row.id)


def check(
    ctx: Context, ref: str, *, read_data: bool = False, sample_share: float | None = None
) -> dict[str, Any]:
    """Begin a check: structure always; with `read_data` all data, with `sample_share` (0 to 1) those of
    that share of the packs. 0 is the same as no share.
    """
    share = sample_share or (1.0 if read_data else 0.0)
    if not 0 <= share <= 1:
        raise InvalidError(
            "sample_share must be from 0 to 1", details={"sample_share": "must be from 0 to 1"}
        )
    options = {"read_data": share > 0, "sample_share": float(share)}
    return _maintenance(ctx, ref, SessionKind.CHECK, options)


def rescan(ctx: Context, ref: str) -> dict[str, Any]:
    """Begin to rebuild the catalogue from the repository."""
    return _maintenance(ctx, ref, SessionKind.RESCAN, {})


def prune(ctx: Context, ref: str) -> dict[str, Any]:
    """Begin to remove data that no restore point needs. Waits for the repository's other sessions."""
    return _maintenance(ctx, ref, SessionKind.PRUNE, {})


def _maintenance(ctx: Context, ref: str, kind: SessionKind, options: dict[str, Any]) -> dict[str, Any]:
    with ctx.db() as s:
        row = by_ref(s, Repository, ref)
        verification.refuse_second(s, row, kind)
        session = sessions.insert(s, kind, now=ctx.clock(), repository_id=row.id, options=options)
    ctx.wake_engine.set()
    return sessions.get(ctx, session.id)


def refresh_space(ctx: Context, repository_id: str) -> None:
    """Ask the agent for space and contents and store them."""
    repository_facts.refresh(ctx, repository_id)
