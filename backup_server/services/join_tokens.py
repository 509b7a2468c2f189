"""Join tokens as one text, and the addresses that stand in it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from backup_server import server_certificates
from backup_server.services.context import Context
from backup_server.up.options import read_json
from proxy_worker.contracts.join_token import (
    JoinToken,
    JoinTokenError,
    is_join_token,
    parse_join_token,
)
from transports.vsphere.model import Secret

SERVER_FILE: Final = "server.json"


def text_of(ctx: Context, name: str, secret: Secret, now: datetime) -> str:
    """What a person carries to the machine of proxy `name`."""
    doors = door_urls(ctx)
    return JoinToken(
        name=name,
        server_urls=doors or (api_url(ctx),),
        ca_sha256=server_certificates.ca_sha256(ctx.settings.tls_dir, now) if doors else "",
        secret=secret.reveal(),
    ).text()


def secret_of(token: Secret) -> Secret:
    """The secret of a token that came whole, as older proxies send it, or the token itself."""
    text = token.reveal()
    if not is_join_token(text):
        return token
    try:
        return Secret(parse_join_token(text).secret)
    except JoinTokenError:
        return token  # it is not valid, which is said where it is looked up


def door_urls(ctx: Context) -> tuple[str, ...]:
    """Where remote proxies are to call; empty while there is no door for them."""
    door = ctx.settings.proxies_door
    if door is None:
        return ()
    names = server_certificates.names_of(door.host, ctx.settings.proxies_names)
    return tuple(f"https://{_bracketed(name)}:{door.port}" for name in names)


def api_url(ctx: Context) -> str:
    """Where the API listens: what the running server wrote down, else what it was told."""
    written: Any = read_json(ctx.settings.run_dir / SERVER_FILE) or {}
    settings = ctx.settings
    return str(written.get("url") or f"http://{_bracketed(settings.host)}:{settings.port}")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
