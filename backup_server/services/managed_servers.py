"""Machines to which vmhaul has access: confirmed, looked at, listed, forgotten."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.tables import ManagedServer, Proxy, new_id
from backup_server.deploy.look import Facts
from backup_server.deploy.places import AnyPlaces
from backup_server.deploy.ssh import Login, SshAddress
from backup_server.deploy.ways import LINUX, WINDOWS, Way, way_of
from backup_server.errors import ConflictError, InvalidError
from backup_server.services.context import Context
from backup_server.services.shapes import Fields, by_ref, when
from transports.vsphere.model import Secret

INSTALLED: Final = "installed"
"""In `ManagedServer.facts`: {proxy id: {places, init, release, extras, python}}."""
_SECRETS: Final = ("password", "private_key", "passphrase", "sudo_password")
LOGIN_FIELDS: Final = (*_SECRETS, "agent_path")

Connect = Callable[[SshAddress, Login], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Where a machine is and who logs in."""

    address: SshAddress
    login: Login = field(repr=False)
    kind: str = LINUX

    @property
    def way(self) -> Way:
        return way_of(self.kind)


def probe(address: str, port: int | None, kind: str = LINUX) -> dict[str, Any]:
    """The SSH host key, or the thumbprint of WinRM's certificate, that is shown there, for a person to compare."""
    way = way_of(kind)
    port = port or way.port
    return {"address": address, "port": port, "host_key": way.identity_of(address, port)}


def look_at(ctx: Context, data: Mapping[str, Any], *, connect: Connect | None = None) -> dict[str, Any]:
    """What a machine is and what stands against a proxy there. Changes nothing."""
    given = Fields(data)
    access = access_of(ctx, given)
    places = given.checked("places", places_of(access), default={})
    python = given.text("python", default="", empty=True)
    given.finish("the look at the machine")
    way = access.way
    with (connect or way.connect)(access.address, access.login) as machine:
        return way.look(machine, places, lambda: ctx.clock().timestamp(), python=python).shape()


def list_all(ctx: Context) -> list[dict[str, Any]]:
    with ctx.db.read() as s:
        rows = s.scalars(sa.select(ManagedServer).order_by(ManagedServer.name)).all()
        return [_shape(s, row) for row in rows]


def get(ctx: Context, ref: str) -> dict[str, Any]:
    with ctx.db.read() as s:
        return _shape(s, by_ref(s, ManagedServer, ref))


def remove(ctx: Context, ref: str) -> None:
    """Forget the machine and its credentials. Refused while a proxy is installed there."""
    with ctx.db() as s:
        row = by_ref(s, ManagedServer, ref)
        names = s.scalars(sa.select(Proxy.name).where(Proxy.server_id == row.id)).all()
        if names:
            raise ConflictError(
                f"proxy {', '.join(sorted(names))} is installed on server {row.name!r}; "
                "remove it first with `vmhaul proxy remove`"
            )
        s.delete(row)
        s.flush()
        if row.credential_id:
            ctx.credentials.forget(s, row.credential_id)


def places_of(access: Access) -> Callable[[Any], AnyPlaces]:
    """Reads places of the machine's kind."""

    def read(value: Any) -> AnyPlaces:
        if not isinstance(value, Mapping) or set(value) - {
            "install_dir",
            "data_dir",
            "service",
            "user",
        }:
            raise ValueError("must be an object with install_dir, data_dir, service and user")
        return access.way.places_of(value)

    return read


def access_of(ctx: Context, given: Fields) -> Access:
    """Of a request: an address with its confirmed key and a login, or the `server` that is known already.

    What the request says of the login wins over what was kept. Problems go into `given`.
    """
    login = login_of(given)
    if given.has("server"):
        with ctx.db.read() as s:
            row = by_ref(s, ManagedServer, given.text("server"))
            return kept_access(ctx, s, row, login)
    address = given.text("address")
    way: Way = given.checked("kind", way_of, default=LINUX) or way_of(LINUX)
    port = given.number("port", default=way.port, low=1, high=65535)
    host_key = given.text("host_key")
    if way.kind == WINDOWS:
        host_key = _thumbprint(given, host_key)
    elif host_key and not host_key.startswith("SHA256:"):
        given.wrong("host_key", "must be the fingerprint that a person confirmed, as in SHA256:...")
    user = given.text("username")
    if way.kind == WINDOWS:
        _refuse_keys(given, login)
    elif not has_secret(login):
        given.wrong("password", "give a password, a private key or an agent")
    return Access(
        address=SshAddress(host=address, port=port, host_key=host_key),
        login=replace(login, user=user),
        kind=way.kind,
    )


def _thumbprint(given: Fields, value: str) -> str:
    """As it is kept: "SHA256:" and pairs with colons."""
    digits = value.upper().removeprefix("SHA256:").replace(":", "").replace(" ", "")
    if value and not re.fullmatch("[0-9A-F]{64}", digits):
        given.wrong(
            "host_key", "must be the SHA-256 thumbprint of WinRM's certificate, 64 hexadecimal digits"
        )
    return "SHA256:" + ":".join(digits[at : at + 2] for at in range(0, len(digits), 2))


def _refuse_keys(given: Fields, login: Login) -> None:
    if login.password is None:
        given.wrong("password", "give a password: WinRM takes nothing else here")
    for name in ("private_key", "agent_path", "sudo_password"):
        if getattr(login, name) is not None:
            given.wrong(name, "belongs to SSH; WinRM takes a user and a password")


def login_of(given: Fields) -> Login:
    """The part of a request that lets in; its user is not known here."""
    agent = given.take("agent_path")
    return replace(_login("", {name: given.take(name) for name in _SECRETS}), agent_path=agent or None)


def _login(user: str, values: Mapping[str, Any]) -> Login:
    def secret(name: str) -> Secret | None:
        value = values.get(name)
        return value if isinstance(value, Secret) else Secret(str(value)) if value else None

    return Login(
        user=user,
        password=secret("password"),
        private_key=secret("private_key"),
        passphrase=secret("passphrase"),
        sudo_password=secret("sudo_password"),
    )


def has_secret(login: Login) -> bool:
    return bool(login.password or login.private_key or login.agent_path)


def kept_access(ctx: Context, s: DbSession, row: ManagedServer, given: Login) -> Access:
    """The server's, with the login of this request where it holds one. InvalidError when there is none."""
    login = replace(given, user=row.username)
    if not has_secret(given):
        if row.credential_id is None:
            raise InvalidError(
                f"no credentials are kept for server {row.name!r}; give a password or a key with this request",
                details={"password": "none is kept"},
            )
        kept = json.loads(ctx.credentials.fetch(s, row.credential_id).reveal())
        login = _login(row.username, kept)
        if given.sudo_password is not None:
            login = replace(login, sudo_password=given.sudo_password)
    return Access(
        address=SshAddress(host=row.address, port=row.port, host_key=row.host_key),
        login=login,
        kind=row.kind,
    )


def keep(
    ctx: Context, s: DbSession, access: Access, facts: Facts, *, credentials: bool
) -> tuple[ManagedServer, bool]:
    """The machine's row, and whether it is new. Credentials are sealed and kept when that is wanted."""
    address = access.address
    row = s.scalar(
        sa.select(ManagedServer).where(
            ManagedServer.address == address.host, ManagedServer.port == address.port
        )
    )
    new = row is None
    if row is None:
        row = ManagedServer(
            id=new_id(),
            name=_free_name(s, address),
            kind=access.kind,
            address=address.host,
            port=address.port,
            username=access.login.user,
            host_key=address.host_key,
            facts={},
            created_at=ctx.clock(),
        )
        s.add(row)
    row.kind, row.host_key = access.kind, address.host_key
    row.facts = {**row.facts, **facts.shape()}
    if credentials and access.login.agent_path is None:
        row.username = access.login.user
        secret = _packed(access.login)
        if row.credential_id:
            ctx.credentials.replace(s, row.credential_id, secret)
        else:
            row.credential_id = ctx.credentials.store(s, "managed-server", secret, ctx.clock())
    s.flush()
    return row, new


def set_installed(
    s: DbSession, server_id: str, proxy_id: str, values: Mapping[str, Any] | None
) -> None:
    """What is installed there of that proxy; None: nothing any more."""
    row = s.get(ManagedServer, server_id)
    if row is None:
        return
    others = {name: one for name, one in row.facts.get(INSTALLED, {}).items() if name != proxy_id}
    row.facts = {
        **row.facts,
        INSTALLED: others if values is None else {**others, proxy_id: dict(values)},
    }


def installed(row: ManagedServer, proxy_id: str) -> dict[str, Any]:
    """{places, init, release, extras, python} of a proxy on that machine."""
    return dict(row.facts.get(INSTALLED, {}).get(proxy_id, {}))


def _free_name(s: DbSession, address: SshAddress) -> str:
    taken = s.scalar(sa.select(ManagedServer.id).where(ManagedServer.name == address.host))
    return f"{address.host}:{address.port}" if taken else address.host


def _packed(login: Login) -> Secret:
    values = {
        name: secret.reveal() for name in _SECRETS if (secret := getattr(login, name)) is not None
    }
    return Secret(json.dumps(values))


def _shape(s: DbSession, row: ManagedServer) -> dict[str, Any]:
    found = s.execute(sa.select(Proxy.id, Proxy.name).where(Proxy.server_id == row.id))
    names = {one.id: one.name for one in found}
    known = row.facts.get(INSTALLED, {})
    facts = {name: value for name, value in row.facts.items() if name != INSTALLED}
    return {
        "id": row.id,
        "name": row.name,
        "kind": row.kind,
        "address": row.address,
        "port": row.port,
        "username": row.username,
        "host_key": row.host_key,
        "credentials_kept": row.credential_id is not None,
        "facts": facts,
        "proxies": [
            {"name": name, **known.get(proxy_id, {})}
            for proxy_id, name in sorted(names.items(), key=lambda item: item[1])
        ],
        "created_at": when(row.created_at),
    }
