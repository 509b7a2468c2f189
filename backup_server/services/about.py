"""What this server is, and whether the parts that it cannot work without are there."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

import redis
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from backup_server.broker import server_url as embedded_url
from backup_server.services import join_tokens
from backup_server.services.context import Context
from backup_server.services.shapes import when
from proxy_worker.contracts.names import redis_client_url

BROKER_TIMEOUT_S: Final = 3.0


def about(ctx: Context) -> dict[str, Any]:
    return {
        "version": version("vmhaul"),
        "server_id": ctx.server_id,
        "started_at": when(ctx.started_at),
        "data_dir": str(ctx.settings.data_dir),
        "database": make_url(ctx.settings.database_url).render_as_string(hide_password=True),
        "broker": make_url(broker_url(ctx)).render_as_string(hide_password=True),
        "flower_url": _flower_url(ctx),
        "proxies_door": list(join_tokens.door_urls(ctx)),
    }


def broker_url(ctx: Context) -> str:
    """In Celery's form, with the server's login: the one that was named, or the embedded one's socket."""
    return ctx.settings.broker or embedded_url(ctx.settings.run_dir)


def _flower_url(ctx: Context) -> str | None:
    """Flower listens on loopback; the supervisor tells its port in the settings (0: it does not run)."""
    settings = ctx.settings
    return (
        f"http://127.0.0.1:{settings.flower_port}" if settings.flower and settings.flower_port else None
    )


def health(ctx: Context) -> dict[str, Any]:
    """{"status": "ok"}, or {"status": "unavailable", "parts": {part: what is wrong}}."""
    wrong: dict[str, str] = {}
    try:
        with ctx.db.read() as s:
            s.execute(sa.text("SELECT 1"))
    except sa.exc.SQLAlchemyError as error:
        wrong["database"] = type(error).__name__
    problem = broker_problem(ctx)
    if problem:
        wrong["broker"] = problem
    return {"status": "unavailable", "parts": wrong} if wrong else {"status": "ok"}


def broker_problem(ctx: Context) -> str:
    """Why the broker does not answer; empty when it does."""
    try:
        with connect_broker(ctx) as client:
            client.ping()
    except (redis.RedisError, OSError, ValueError) as error:
        return f"does not answer ({type(error).__name__})"
    return ""


def connect_broker(ctx: Context) -> redis.Redis:
    return redis.Redis.from_url(
        redis_client_url(broker_url(ctx)),
        socket_timeout=BROKER_TIMEOUT_S,
        socket_connect_timeout=BROKER_TIMEOUT_S,
    )
