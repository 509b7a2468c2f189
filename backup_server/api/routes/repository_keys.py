"""Keys of repositories, and their features."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from backup_server.api import answers
from backup_server.api.deps import Ctx
from backup_server.api.schemas import KeyBody, KeyChangeBody, KeyRotateBody, KeyUseBody, NothingBody
from backup_server.services import repository_keys
from transports.vsphere.model import Secret

router = APIRouter(prefix="/repositories", tags=["repositories"])


@router.get("/{ref}/keys", responses=answers.ok(answers.RepositoryKeys, 404, 409, 503))
def list_keys(ctx: Ctx, ref: str) -> Any:
    return {"keys": repository_keys.list_all(ctx, ref)}


@router.post("/{ref}/keys", responses=answers.ok(answers.NewRepositoryKey, 404, 409, 422, 503))
def add_key(ctx: Ctx, ref: str, body: KeyBody) -> Any:
    """Add a password, or make a key file or recovery key: its text is in `secret`, this once."""
    password = None if body.password is None else Secret(body.password.get_secret_value())
    return repository_keys.add(ctx, ref, kind=body.kind, password=password, label=body.label)


@router.post("/{ref}/keys/change", responses=answers.ok(answers.RepositoryKey, 404, 409, 422, 503))
def change_key(ctx: Ctx, ref: str, body: KeyChangeBody) -> Any:
    """Replace the server's own password, or another one that is given."""
    old = None if body.old_password is None else Secret(body.old_password.get_secret_value())
    new = Secret(body.new_password.get_secret_value())
    return repository_keys.change(ctx, ref, new_password=new, old_password=old)


@router.post("/{ref}/keys/use", responses=answers.ok(answers.RepositoryKey, 404, 409, 422, 503))
def use_key(ctx: Ctx, ref: str, body: KeyUseBody) -> Any:
    """Let the server open the repository with this from now on."""
    return repository_keys.use(ctx, ref, Secret(body.password.get_secret_value()))


@router.post("/{ref}/keys/rotate", responses=answers.ok(answers.KeyEpoch, 404, 409, 503))
def rotate_data_key(ctx: Ctx, ref: str, body: KeyRotateBody | None = None) -> Any:
    """Encrypt new data with a new key."""
    return repository_keys.rotate(ctx, ref, without=body.without if body else ())


@router.delete(
    "/{ref}/keys/{key}",
    status_code=204,
    responses={404: {"model": answers.ErrorAnswer}, 409: {"model": answers.ErrorAnswer}},
)
def revoke_key(ctx: Ctx, ref: str, key: str) -> None:
    """Delete a key; refused for the last one and for the server's own."""
    repository_keys.revoke(ctx, ref, key)


@router.post("/{ref}/upgrade", responses=answers.ok(answers.Upgraded, 404, 409, 503))
def upgrade_repository(ctx: Ctx, ref: str, body: NothingBody | None = None) -> Any:
    """Give it every feature of this release."""
    del body
    return repository_keys.upgrade(ctx, ref)
