"""Backup proxies: added by a person, enrolled by themselves, run by `vmhaul up` when they are local."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError as DuplicateError
from sqlalchemy.orm import Session as DbSession

from backup_server.credentials import new_join_token, token_hash
from backup_server.db.tables import Job, ManagedServer, Proxy, Repository, Task, new_id
from backup_server.errors import ConflictError, NotFoundError, UnauthorizedError
from backup_server.services import (
    broker_users,
    events,
    instances,
    join_tokens,
    operations,
    proxy_discovery,
    proxy_rates,
    proxy_settings,
    proxy_vms,
    results,
    tasks,
)
from backup_server.services.context import Context
from backup_server.services.joining import Joining, take_in
from backup_server.services.proxy_facts import NO_DIRECTORIES, running_by_proxy
from backup_server.services.proxy_names import refuse_name_in_use
from backup_server.services.shapes import Fields, by_ref, when
from proxy_worker.contracts.messages import TaskKind
from proxy_worker.contracts.older import release_of
from transports.base import TransportMode
from transports.rules import same_uuid
from transports.vsphere.model import Secret

DEFAULT_NAME: Final = "default"
JOIN_TOKEN_FILE: Final = "join-token"  # noqa: S105 - a file's name
MAX_SLOTS: Final = 64
_KEY_HEX_CHARS: Final = 64  # 32 bytes
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def list_all(ctx: Context) -> list[dict[str, Any]]:
    with ctx.db.read() as s:
        rows = s.scalars(sa.select(Proxy).order_by(Proxy.name)).all()
        running = running_by_proxy(s)
        names, installed = _repository_names(s), _on_servers(s)
        return [{**_shape(ctx, row, running.get(row.id, 0), names), **installed(row)} for row in rows]


def get(ctx: Context, ref: str) -> dict[str, Any]:
    with ctx.db.read() as s:
        row = by_ref(s, Proxy, ref)
        shown = _shape(ctx, row, running_by_proxy(s).get(row.id, 0), _repository_names(s))
        return {**shown, **_on_servers(s)(row), "discovery": proxy_discovery.shape(s, row)}


def _on_servers(s: DbSession) -> Callable[[Proxy], dict[str, Any]]:
    """Of each proxy: the managed server that it is on, and what is done with it now."""
    names = {one.id: one.name for one in s.execute(sa.select(ManagedServer.id, ManagedServer.name))}
    operating = operations.running_on(s)

    def of(row: Proxy) -> dict[str, Any]:
        operation = operating.get(f"proxy/{row.id}") or operating.get(f"proxy-name/{row.name}")
        return {"server": names.get(row.server_id or ""), "operation": operation}

    return of


def add(
    ctx: Context, *, name: str, slots: int | None = None, local: bool = False, description: str = ""
) -> dict[str, Any]:
    """A new proxy. One that is not local gets `join_token`, which is shown here and never again.

    A local proxy's token goes into `proxies/<name>/join-token` (mode 0600), where its worker finds it.
    """
    given = Fields({"name": name, "slots": slots or ctx.settings.default_proxy_slots})
    given.checked("name", check_name)
    given.number("slots", low=1, high=MAX_SLOTS)
    given.finish("the proxy")
    now = ctx.clock()
    token = new_join_token()
    row = Proxy(
        id=new_id(),
        name=name,
        description=description,
        local=local,
        enabled=True,
        slots=given.data["slots"],
        modes=[],
        join_token_hash=token_hash(token),
        # Files of the data directory cannot be read by others: they need no expiry.
        join_token_expires_at=None if local else _expiry(ctx, now),
        facts={},
        created_at=now,
    )
    try:
        with ctx.db() as s:
            s.add(row)
            refuse_name_in_use(s, row)
            if local:
                instances.claim(s, ctx.settings, row.id)
    except DuplicateError:
        raise ConflictError(
            f"a proxy named {name!r} exists already; give another name or remove that one first"
        ) from None
    if local:
        _write_join_token(ctx, name, token)
        write_local_proxies(ctx)
        return get(ctx, row.id)
    return {**get(ctx, row.id), "join_token": join_tokens.text_of(ctx, name, token, now)}


def new_token(ctx: Context, ref: str) -> dict[str, Any]:
    """A fresh join token for a proxy that is to be enrolled again; its old keys end to be trusted."""
    token = new_join_token()
    with ctx.db() as s:
        row = by_ref(s, Proxy, ref)
        _refuse_while_running(s, row, "enrolled again")
        row.join_token_hash = token_hash(token)
        row.join_token_expires_at = None if row.local else _expiry(ctx, ctx.clock())
        row.signing_key = row.sealing_key = None
        proxy_vms.unconfirm(row)
        broker_users.forget_password(ctx, s, row)
    broker_users.sync(ctx)
    if row.local:
        _write_join_token(ctx, row.name, token)
        return get(ctx, row.id)
    return {**get(ctx, row.id), "join_token": join_tokens.text_of(ctx, row.name, token, ctx.clock())}


def edit(ctx: Context, ref: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Change name, slots, enabled, description, modes or what `proxy_settings` and `proxy_rates` know. A change of what its modes
    look at makes it look around.
    """
    given = Fields(changes)
    values: dict[str, Any] = {}
    if given.has("name"):
        values["name"] = given.checked("name", check_name)
    if given.has("slots"):
        values["slots"] = given.number("slots", low=1, high=MAX_SLOTS)
    if given.has("enabled"):
        values["enabled"] = given.flag("enabled")
    if given.has("description"):
        values["description"] = given.text("description", empty=True)
    if given.has("modes"):
        values["modes"] = given.checked("modes", check_modes)
    with ctx.db.read() as s:
        settings = proxy_settings.changes(given, partial(_repository_id, s))
    settings |= proxy_rates.changes(given)
    given.finish("the change of the proxy")
    try:
        with ctx.db() as s:
            row = by_ref(s, Proxy, ref)
            if row.local and values.get("name", row.name) != row.name:
                raise ConflictError(
                    f"proxy {row.name!r} is local: its directory bears its name, so it keeps it; add another one instead"
                )
            if row.signing_key and values.get("name", row.name) != row.name:
                # Its worker goes on under the name with which it joined, and so does its mailbox.
                row.settings = {proxy_settings.ENROLLED_AS: row.name, **row.settings}
            for name, value in values.items():
                setattr(row, name, value)
            if "name" in values:
                refuse_name_in_use(s, row)
            if settings:
                row.settings = {**row.settings, **settings}
            unseen = {proxy_settings.REPOSITORIES, *proxy_rates.NAMES}
            if set(settings) - unseen or "modes" in values:
                proxy_discovery.ask(s, [row.id], ctx.clock())
    except DuplicateError:
        raise ConflictError(
            f"a proxy named {values.get('name')!r} exists already; give another name"
        ) from None
    write_local_proxies(ctx)
    ctx.wake_dispatcher.set()
    return get(ctx, row.id)


def _repository_id(s: DbSession, ref: str) -> str:
    """ValueError for a repository that there is not."""
    try:
        return by_ref(s, Repository, ref).id
    except NotFoundError as error:
        raise ValueError(str(error)) from None


def confirm_vm(ctx: Context, ref: str, vm_uuid: str) -> dict[str, Any]:
    """An administrator stands for it that the proxy is the VM with that SMBIOS UUID. ConflictError when it shows
    another one, or is no VM, or one of several, as far as inventories tell.
    """
    with ctx.db() as s:
        # With the row locked: what it shows must not change between the look and the note.
        row = s.get_one(Proxy, by_ref(s, Proxy, ref).id, with_for_update=True, populate_existing=True)
        shown, vms = proxy_vms.uuid_of(row), proxy_vms.of_facts(row.facts)
        if not shown:
            raise ConflictError(
                f"proxy {row.name!r} shows no SMBIOS UUID; run its worker as root or set vm_uuid in its proxy.toml"
            )
        if not same_uuid(shown, vm_uuid):
            raise ConflictError(
                f"proxy {row.name!r} shows the SMBIOS UUID {shown}, not {vm_uuid}: look at it again before you confirm"
            )
        if not vms:
            raise ConflictError(
                f"no registered vCenter has a VM with the SMBIOS UUID {shown} of proxy {row.name!r}; if it is a new "
                "VM, read the inventory again with `vmhaul vcenter inventory NAME --refresh`"
            )
        proxy_vms.confirm(row, "administrator")
        events.record(
            s,
            ctx.clock(),
            "proxy.vm-confirmed",
            f"proxy {row.name} is VM {', '.join(f'{vm.name} ({vm.moref})' for vm in vms)}: confirmed",
        )
    ctx.wake_dispatcher.set()
    return get(ctx, ref)


def remove(ctx: Context, ref: str, *, force: bool = False) -> None:
    """Refused while a job names the proxy, and while tasks run on it unless `force`: another takes them when their
    leases end. Its keys are trusted no longer.
    """
    with ctx.db() as s:
        row = by_ref(s, Proxy, ref)
        refuse_while_named(s, row)
        if not force:
            _refuse_while_running(s, row, "removed")
        broker_users.forget_password(ctx, s, row)
        s.delete(row)
    broker_users.sync(ctx)
    if row.local:
        with contextlib.suppress(FileNotFoundError):
            _join_token_file(ctx, row.name).unlink()
        write_local_proxies(ctx)


def refuse_while_named(s: DbSession, row: Proxy) -> None:
    """ConflictError when a job names it."""
    for job in s.scalars(sa.select(Job)):
        if row.id in job.options.get("proxies", []):
            raise ConflictError(
                f"proxy {row.name!r} is named by job {job.name!r}; take it out of the job first"
            )


def running_on(s: DbSession, proxy_id: str) -> int:
    """Tasks that it works on now."""
    return running_by_proxy(s).get(proxy_id, 0)


def revoke(ctx: Context, ref: str) -> dict[str, Any]:
    """Trust a proxy no longer, at once: its keys, its broker user, its leases. What it works on is placed again.

    `repositories_to_rotate` names those whose keys it was given: what is written there after `vmhaul repository key
    rotate` it cannot read. ConflictError for a local proxy, which is as trustworthy as the server is.
    """
    now = ctx.clock()
    with ctx.db() as s:
        row = by_ref(s, Proxy, ref)
        if row.local:
            raise ConflictError(
                f"proxy {row.name!r} runs on the server itself and has what the server has; "
                "disable or remove it instead"
            )
        row.signing_key = row.sealing_key = None
        row.join_token_hash = row.join_token_expires_at = None
        proxy_vms.unconfirm(row)
        broker_users.forget_password(ctx, s, row)
        repositories = _repositories_of(s, row.id)
        reason = f"proxy {row.name} is trusted no longer"
        ended = tasks.end_leases_of(
            s, row.id, reason=reason, now=now, policy=results.policy_of(ctx.settings)
        )
        text = f"proxy {row.name} was revoked; {len(ended)} tasks were taken back"
        if repositories:
            text += f". It knew the keys of {', '.join(repositories)}: change them with `vmhaul repository key rotate`"
        events.record(s, now, "proxy.revoked", text, level=events.WARNING, ids={"proxy": row.name})
    broker_users.sync(ctx)
    for wake in (ctx.wake_dispatcher, ctx.wake_engine, ctx.wake_janitor):
        wake.set()
    return {**get(ctx, row.id), "repositories_to_rotate": repositories}


def _repositories_of(s: DbSession, proxy_id: str) -> list[str]:
    """Names of the repositories whose keys a proxy was given, as far as its tasks are still known."""
    rows = s.execute(
        sa.select(Task.repository_id, Task.kind, Task.order).where(Task.proxy_id == proxy_id)
    ).all()
    own = {row.repository_id for row in rows}
    sources = {
        row.order["source"]["repository_id"] for row in rows if row.kind == TaskKind.COPY_DISK.value
    }
    found = s.scalars(
        sa.select(Repository.name).where(
            sa.or_(Repository.id.in_(own), Repository.repository_id.in_(sources))
        )
    )
    return sorted(found)


def _check_release(version: str) -> None:
    """ConflictError for a proxy that is installed anew with an older release than the server's: it knows nothing of
    a broker user of its own. Those that joined before go on working.
    """
    own = installed_version("vmhaul")
    if release_of(version) < release_of(own):
        raise ConflictError(
            f"this machine has release {version} of vmhaul and the server {own}: install the server's release "
            "before it joins"
        )


def _refuse_while_running(s: DbSession, row: Proxy, what: str) -> None:
    running = running_by_proxy(s).get(row.id, 0)
    if running:
        raise ConflictError(
            f"proxy {row.name!r} cannot be {what} while {running} tasks run on it; "
            "disable it, and wait or cancel their sessions"
        )


def enrol(
    ctx: Context, *, token: Secret, name: str, signing_key: str, sealing_key: str, version: str
) -> str:
    """Id of the proxy whose keys were stored. The token works once, for one pair of keys: who did not hear the answer may
    ask again with the same, until the token is too old or the server heard the proxy.

    UnauthorizedError when no proxy of that name waits for this token or the token is too old. ConflictError when
    another machine takes the name at the same moment.
    """
    given = Fields({"signing_key": signing_key, "sealing_key": sealing_key})
    given.checked("signing_key", _check_key)
    given.checked("sealing_key", _check_key)
    given.finish("the enrolment")
    _check_release(version)
    joining = Joining(
        name=name,
        name_is_good=_NAME.fullmatch(name) is not None,
        token_hash=token_hash(join_tokens.secret_of(token)),
        signing_key=signing_key.lower(),
        sealing_key=sealing_key.lower(),
        version=version,
    )
    now = ctx.clock()
    try:
        with ctx.db() as s:
            proxy_id = take_in(ctx, s, joining, now)
    except DuplicateError as error:
        raise ConflictError(
            f"another machine joins as {name!r} at this moment; try again, or give this one another name"
        ) from error
    if proxy_id is None:
        raise UnauthorizedError(
            f"the join token is not (or no longer) valid for a proxy named {name!r}; "
            "a token works once and for a short time: ask for a new one"
        )
    with ctx.db.read() as s:
        local = s.get_one(Proxy, proxy_id).local
    if local:
        # Its worker removes the file with the token, once it has kept the answer.
        write_local_proxies(ctx)
    broker_users.sync(ctx)
    return proxy_id


def ensure_default(ctx: Context) -> None:
    """The server's own proxy, unless there is a proxy already."""
    with ctx.db.read() as s:
        empty = s.scalar(sa.select(sa.func.count()).select_from(Proxy)) == 0
    if empty:
        add(ctx, name=DEFAULT_NAME, local=True, description="the backup server's own")


def put_local_files_right(ctx: Context) -> None:
    """At every start: the supervisor's file, and join tokens of local proxies that wait for theirs."""
    with ctx.db() as s:
        instances.adopt(s, ctx.settings)
    with ctx.db.read() as s:
        found = s.scalars(
            sa.select(Proxy).where(Proxy.local.is_(True), Proxy.signing_key.is_(None))
        ).all()
        waiting = instances.of_here(s, ctx.settings, found)
    for row in waiting:
        # A crash between the row and the file: only the hash is left of the token, so make another.
        if not _join_token_file(ctx, row.name).exists():
            new_token(ctx, row.id)
    write_local_proxies(ctx)


def write_local_proxies(ctx: Context) -> None:
    """`run/local-proxies.json` for the supervisor and the local proxies. Replaced as a whole.

    The broker stands in it because what a proxy learnt when it enrolled may be another one by now: the
    data directory was moved or copied, or the broker was moved out of it. A disabled one stays in it: it gets nothing new, and what runs on it is to end in peace.
    """
    with ctx.db.read() as s:
        rows = s.scalars(
            sa.select(Proxy).where(Proxy.local.is_(True)).order_by(Proxy.created_at, Proxy.name)
        ).all()
        rows = instances.of_here(s, ctx.settings, rows)
        urls = {
            row.id: broker_users.access_of(ctx, s, row).url if row.signing_key else "" for row in rows
        }
    content = {
        "log_format": ctx.settings.log_format,
        "proxies": [
            {"name": row.name, "id": row.id, "slots": row.slots, "broker_url": urls[row.id]}
            for row in rows
        ],
    }
    _replace_file(ctx.settings.run_dir / "local-proxies.json", json.dumps(content, indent=1) + "\n")


def state_of(row: Proxy, now: datetime, offline_after_s: float, running: int = 1) -> str:
    """online, offline, draining (disabled, ends what runs), drained (disabled, `running` is 0) or never-seen."""
    if row.last_seen_at is None:
        return "never-seen"
    if (now - row.last_seen_at).total_seconds() > offline_after_s:
        return "offline"
    if row.enabled:
        return "online"
    return "draining" if running else "drained"


def check_modes(value: Any) -> list[str]:
    """Names of transport modes, best first; ValueError for what is none."""
    known = [mode.value for mode in TransportMode]
    if not isinstance(value, list | tuple) or any(mode not in known for mode in value):
        raise ValueError(f"must be a list of some of {', '.join(known)}")
    return [mode for mode in known if mode in value]


def check_name(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(
            "must be 1 to 63 letters, digits, dots, dashes or underscores, beginning with a letter or digit"
        )
    return value


def _check_key(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        raise ValueError(f"must be a public key of {_KEY_HEX_CHARS} hexadecimal digits")
    return value


def _expiry(ctx: Context, now: datetime) -> datetime:
    return now + timedelta(seconds=ctx.settings.join_token_ttl_s)


def _join_token_file(ctx: Context, name: str) -> Path:
    return ctx.settings.proxies_dir / name / JOIN_TOKEN_FILE


def _write_join_token(ctx: Context, name: str, token: Secret) -> None:
    file = _join_token_file(ctx, name)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _replace_file(file, token.reveal() + "\n")


def _replace_file(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{new_id()}")
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _repository_names(s: DbSession) -> dict[str, str]:
    return {row.id: row.name for row in s.execute(sa.select(Repository.id, Repository.name))}


def _shape(ctx: Context, row: Proxy, running: int, repositories: Mapping[str, str]) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "description": row.description,
        "local": row.local,
        "enabled": row.enabled,
        "enrolled": row.signing_key is not None,
        "state": state_of(row, ctx.clock(), ctx.settings.proxy_offline_after_s, running),
        "slots": row.slots,
        "running": running,
        "modes": row.modes or row.facts.get("modes", []),
        "offered_modes": row.facts.get("modes", []),
        NO_DIRECTORIES: row.facts.get(NO_DIRECTORIES, ""),
        **proxy_settings.shape(row.settings, repositories),
        **proxy_rates.shape(row.settings, ctx.clock()),
        "vm_confirmed": proxy_vms.how_confirmed(row.settings, proxy_vms.uuid_of(row), local=row.local)
        or None,
        "looked_at": when(row.connections_at),
        "version": row.version,
        "last_seen_at": when(row.last_seen_at),
        "clock_offset_s": row.clock_offset_s,
        "state_note": row.state_note,
        "cpu_share": row.facts.get("cpu_share"),
        "free_memory_bytes": row.facts.get("free_memory_bytes"),
    }
