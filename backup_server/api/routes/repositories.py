"""Repositories."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import SecretStr

from backup_server.api import answers
from backup_server.api.deps import DEFAULT_LIMIT, Ctx, Cursor, Limit, page
from backup_server.api.schemas import (
    CheckBody,
    NothingBody,
    RecoverBody,
    RepairBody,
    RepositoryBody,
    RepositoryChanges,
)
from backup_server.services import (
    repairs,
    repositories,
    repository_index,
    repository_storage,
    verification,
)
from transports.vsphere.model import Secret

router = APIRouter(prefix="/repositories", tags=["repositories"])


@router.get("", responses=answers.ok(answers.Page[answers.Repository]))
def list_repositories(ctx: Ctx, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None) -> Any:
    return page(repositories.list_all(ctx), limit, cursor)


@router.post("", responses=answers.ok(answers.Repository, 409, 422, 503))
def add_repository(ctx: Ctx, body: RepositoryBody) -> Any:
    """Create one; with `import`, take over the one that is there."""
    return repositories.add(
        ctx,
        name=body.name,
        location=body.location,
        password=Secret(body.password.get_secret_value()),
        block_size_bytes=body.block_size_bytes,
        max_tasks=body.max_tasks,
        import_existing=body.import_existing,
        storage_secrets=shown(body.storage_secrets),
        immutable_days=body.immutable_days,
    )


@router.get("/{ref}", responses=answers.ok(answers.Repository, 404))
def get_repository(ctx: Ctx, ref: str) -> Any:
    return repositories.get(ctx, ref)


@router.patch("/{ref}", responses=answers.ok(answers.Repository, 404, 409, 422))
def edit_repository(ctx: Ctx, ref: str, body: RepositoryChanges) -> Any:
    changes = body.given()
    if body.storage_secrets is not None:
        changes["storage_secrets"] = shown(body.storage_secrets)
    return repositories.edit(ctx, ref, changes)


@router.post("/{ref}/recover", responses=answers.ok(answers.Recovered, 404, 409, 422, 503))
def recover_repository(ctx: Ctx, ref: str, body: RecoverBody) -> Any:
    """Bring a bucket with object lock back to an earlier time from its kept versions."""
    return repository_storage.recover(ctx, ref, body.as_of)


def shown(secrets: dict[str, SecretStr] | None) -> dict[str, str] | None:
    """Out of the door's wrapping, for the service that seals them."""
    if secrets is None:
        return None
    return {name: secret.get_secret_value() for name, secret in secrets.items()}


@router.delete("/{ref}", status_code=204, responses={404: {"model": answers.ErrorAnswer}})
def remove_repository(ctx: Ctx, ref: str) -> None:
    """Forget it; its data stay."""
    repositories.remove(ctx, ref)


@router.post("/{ref}/check", responses=answers.ok(answers.Session, 404, 409))
def check_repository(ctx: Ctx, ref: str, body: CheckBody | None = None) -> Any:
    asked = body or CheckBody()
    return repositories.check(ctx, ref, read_data=asked.read_data, sample_share=asked.sample_share)


@router.post("/{ref}/repair", responses=answers.ok(answers.Session, 404, 409, 422))
def repair_repository(ctx: Ctx, ref: str, body: RepairBody | None = None) -> Any:
    """Bring back what is damaged from copies, and say what is lost."""
    asked = body or RepairBody()
    return repairs.start(
        ctx, ref, sources=asked.sources, from_live=asked.from_live, dry_run=asked.dry_run
    )


@router.post("/{ref}/verify", responses=answers.ok(answers.Session, 404, 409, 422))
def verify_repository(ctx: Ctx, ref: str, body: CheckBody | None = None) -> Any:
    """A verification now, as the repository's schedule would start it."""
    asked = body or CheckBody()
    share = asked.sample_share or None
    return verification.start(ctx, ref, sample_share=share, read_data=asked.read_data)


@router.post("/{ref}/rebuild-index", responses=answers.ok(answers.RebuiltIndex, 404, 409, 503))
def rebuild_repository_index(ctx: Ctx, ref: str, body: NothingBody | None = None) -> Any:
    """Make the index anew from the packs."""
    del body
    return repository_index.rebuild(ctx, ref)


@router.post("/{ref}/rescan", responses=answers.ok(answers.Session, 404, 409))
def rescan_repository(ctx: Ctx, ref: str, body: NothingBody | None = None) -> Any:
    del body
    return repositories.rescan(ctx, ref)


@router.post("/{ref}/prune", responses=answers.ok(answers.Session, 404, 409))
def prune_repository(ctx: Ctx, ref: str, body: NothingBody | None = None) -> Any:
    del body
    return repositories.prune(ctx, ref)
