"""vCenters and standalone hosts: added after their certificate was confirmed, read into a cache."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError as DuplicateError
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import IntentState, SessionState
from backup_server.db.tables import Intent, Job, Session, Vcenter, new_id
from backup_server.errors import ConflictError, InvalidError, UnavailableError, VmhaulError
from backup_server.services import proxy_discovery, proxy_vms
from backup_server.services.context import Context
from backup_server.services.shapes import Fields, by_ref, when
from proxy_worker.contracts.codec import from_json, to_json
from transports.errors import (
    PeerIdentityError,
    PermanentTransportError,
    TransientTransportError,
    TransportError,
)
from transports.vsphere.model import About, Endpoint, Inventory, Login, Secret

DEFAULT_PORT: Final = 443


def list_all(ctx: Context) -> list[dict[str, Any]]:
    with ctx.db.read() as s:
        return [_shape(row) for row in s.scalars(sa.select(Vcenter).order_by(Vcenter.name))]


def get(ctx: Context, ref: str) -> dict[str, Any]:
    with ctx.db.read() as s:
        return _shape(by_ref(s, Vcenter, ref))


def probe(ctx: Context, host: str, port: int = DEFAULT_PORT) -> dict[str, Any]:
    """Thumbprints of the certificate that answers there, for a person to compare."""
    try:
        prints = ctx.vcenters.probe(host, port)
    except TransportError as error:
        raise as_server_error(error) from error
    return {
        "host": host,
        "port": port,
        "thumbprint_sha256": prints.thumbprint_sha256,
        "thumbprint_sha1": prints.thumbprint_sha1,
    }


def add(
    ctx: Context,
    *,
    name: str,
    host: str,
    username: str,
    password: Secret,
    thumbprint_sha256: str,
    port: int = DEFAULT_PORT,
) -> dict[str, Any]:
    """Log in, store the login, read the inventory. InvalidError for a wrong password or thumbprint."""
    values = _checked(
        {
            "name": name,
            "host": host,
            "port": port,
            "username": username,
            "thumbprint": thumbprint_sha256,
        }
    )
    about = _log_in(ctx, values, password)
    now = ctx.clock()
    try:
        with ctx.db() as s:
            _refuse_twin(s, about.instance_uuid)
            row = Vcenter(
                id=new_id(),
                credential_id=ctx.credentials.store(s, "vcenter", password, now),
                instance_uuid=about.instance_uuid,
                about=to_json(about),
                inventory_at=None,
                created_at=now,
                **values,
            )
            s.add(row)
            proxy_discovery.ask_all(s, now)
    except DuplicateError:
        raise ConflictError(
            f"a vCenter named {name!r} exists already; give another name or edit that one"
        ) from None
    return get(ctx, row.id)


def _refuse_twin(s: DbSession, instance_uuid: str) -> None:
    """One vCenter under two names would be backed up by two jobs that take each other's snapshots for
    foreign ones.
    """
    if not instance_uuid:
        return
    twin = s.scalar(sa.select(Vcenter).where(Vcenter.instance_uuid == instance_uuid).limit(1))
    if twin is not None:
        raise ConflictError(
            f"this vCenter (instance {instance_uuid}) is registered already as {twin.name!r} at "
            f"{twin.host}; use that one, or change its host with `vmhaul vcenter edit {twin.name}`",
            details={"vcenter": twin.name},
        )


def edit(ctx: Context, ref: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Change name, host, port, username, password (a Secret) or thumbprint_sha256; logs in to check."""
    with ctx.db.read() as s:
        row = by_ref(s, Vcenter, ref)
        password = changes.get("password")
        if password is None:
            password = ctx.credentials.fetch(s, row.credential_id)
    values = _checked(
        {
            "name": changes.get("name", row.name),
            "host": changes.get("host", row.host),
            "port": changes.get("port", row.port),
            "username": changes.get("username", row.username),
            "thumbprint": changes.get("thumbprint_sha256", row.thumbprint_sha256),
        },
        unknown=set(changes) - {"name", "host", "port", "username", "password", "thumbprint_sha256"},
    )
    about = _log_in(ctx, values, password)
    if row.instance_uuid and about.instance_uuid != row.instance_uuid:
        raise InvalidError(
            f"{values['host']} is another vCenter than {row.name!r} was; add it under a name of its own",
            details={"host": "answers with another instance uuid"},
        )
    try:
        with ctx.db() as s:
            stored = s.get_one(Vcenter, row.id)
            for field_name, value in values.items():
                setattr(stored, field_name, value)
            stored.about = to_json(about)
            ctx.credentials.replace(s, stored.credential_id, password)
    except DuplicateError:
        raise ConflictError(f"a vCenter named {values['name']!r} exists already") from None
    ctx.vcenters.forget(row.id)
    return get(ctx, row.id)


def remove(ctx: Context, ref: str) -> None:
    """Refused while a job names it, a session uses it, or something of ours is left to clean there."""
    with ctx.db() as s:
        row = by_ref(s, Vcenter, ref)
        jobs = s.scalars(sa.select(Job.name).where(Job.vcenter_id == row.id)).all()
        if jobs:
            raise ConflictError(
                f"vCenter {row.name!r} is used by job {', '.join(jobs)}; delete or change the job first"
            )
        busy = s.scalar(
            sa.select(sa.func.count())
            .select_from(Session)
            .where(Session.vcenter_id == row.id, Session.state != SessionState.FINISHED.value)
        )
        if busy:
            raise ConflictError(f"vCenter {row.name!r} is used by a session; wait for it or cancel it")
        left = s.scalars(
            sa.select(Intent.vm_name).where(
                Intent.vcenter_id == row.id, Intent.state == IntentState.OPEN.value
            )
        ).all()
        if left:
            raise ConflictError(
                f"vCenter {row.name!r}: snapshots or half restored VMs of vmhaul are left on "
                f"{', '.join(left)}; the janitor goes on trying, `vmhaul doctor` shows why"
            )
        _forget_history(s, row.id)
        credential = row.credential_id
        s.delete(row)
        s.flush()
        ctx.credentials.forget(s, credential)
    ctx.vcenters.forget(row.id)


def _forget_history(s: Any, vcenter_id: str) -> None:
    from backup_server.db.tables import Task

    s.execute(sa.delete(Intent).where(Intent.vcenter_id == vcenter_id))
    s.execute(sa.update(Session).where(Session.vcenter_id == vcenter_id).values(vcenter_id=None))
    s.execute(sa.update(Task).where(Task.vcenter_id == vcenter_id).values(vcenter_id=None))


def inventory(ctx: Context, ref: str, *, refresh: bool = False) -> dict[str, Any]:
    """The inventory as last read (`read_at`), or as it is now."""
    with ctx.db.read() as s:
        vcenter_id = by_ref(s, Vcenter, ref).id
    try:
        found = load_inventory(ctx, vcenter_id, max_age_s=0 if refresh else None)
    except TransportError as error:
        raise as_server_error(error) from error
    with ctx.db.read() as s:
        row = s.get_one(Vcenter, vcenter_id)
        return {"vcenter": row.name, "read_at": when(row.inventory_at), **to_json(found)}


def load_inventory(ctx: Context, vcenter_id: str, *, max_age_s: float | None = None) -> Inventory:
    """Inventory from the cache when it is young enough (default: settings), else read and cached.

    Errors of transports.errors when it has to be read and cannot.
    """
    limit = ctx.settings.inventory_max_age_s if max_age_s is None else max_age_s
    now = ctx.clock()
    with ctx.db.read() as s:
        row = by_ref(s, Vcenter, vcenter_id)
        # One of the future was read while the clock was ahead.
        age = None if row.inventory_at is None else now - row.inventory_at
        young = age is not None and timedelta(0) <= age < timedelta(seconds=limit)
        cached = row.inventory if young else None
    if cached is not None:
        return from_json(Inventory, cached, ignore_unknown=True)
    found = ctx.vcenters.get(vcenter_id).inventory()
    with ctx.db() as s:
        s.execute(
            sa.update(Vcenter)
            .where(Vcenter.id == vcenter_id)
            .values(inventory=to_json(found), inventory_at=now, about=to_json(found.about))
        )
    proxy_vms.follow_inventory(ctx.db, vcenter_id, found)
    return found


def as_server_error(error: TransportError) -> VmhaulError:
    """What a transport's error is to somebody who called a service."""
    if isinstance(error, PeerIdentityError):
        return InvalidError(str(error), details={"thumbprint_sha256": str(error)})
    if isinstance(error, TransientTransportError):
        return UnavailableError(str(error))
    return ConflictError(str(error))


def _log_in(ctx: Context, values: Mapping[str, Any], password: Secret) -> About:
    endpoint = Endpoint(
        host=values["host"], port=values["port"], thumbprint_sha256=values["thumbprint_sha256"]
    )
    try:
        client = ctx.vcenters.connect(endpoint, Login(username=values["username"], password=password))
        try:
            return client.about()
        finally:
            client.close()
    except PeerIdentityError as error:
        raise as_server_error(error) from error
    except PermanentTransportError as error:
        raise InvalidError(str(error), details={"password": str(error)}) from error
    except TransportError as error:
        raise as_server_error(error) from error


def _checked(data: Mapping[str, Any], unknown: set[str] | None = None) -> dict[str, Any]:
    given = Fields(data)
    values = {
        "name": given.path_name(),
        "host": given.text("host"),
        "port": given.number("port", low=1, high=65535),
        "username": given.text("username"),
        "thumbprint_sha256": given.checked("thumbprint", _check_thumbprint),
    }
    for name in unknown or ():
        given.wrong(name, "there is no such field")
    given.finish("the vCenter")
    return values


def _check_thumbprint(value: Any) -> str:
    digits = value.replace(":", "").replace(" ", "").upper() if isinstance(value, str) else ""
    if len(digits) != 64 or any(sign not in "0123456789ABCDEF" for sign in digits):  # noqa: PLR2004 - SHA-256 in hex
        raise ValueError("must be the certificate's SHA-256 thumbprint, 64 hexadecimal digits")
    return ":".join(digits[at : at + 2] for at in range(0, 64, 2))


def _shape(row: Vcenter) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "host": row.host,
        "port": row.port,
        "username": row.username,
        "thumbprint_sha256": row.thumbprint_sha256,
        "instance_uuid": row.instance_uuid,
        "about": row.about,
        "inventory_at": when(row.inventory_at),
        "created_at": when(row.created_at),
    }
