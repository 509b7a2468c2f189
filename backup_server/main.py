"""Composition root of the server process: `python -m backup_server.main --data DIR`.

API, console, session engine, scheduler and janitor in one process over one context. The clock, the
keys and the way to vSphere are chosen here and handed down.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import redis
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.routing import Mount

from backup_server.api.app import create_api
from backup_server.api.deps import Doorstep
from backup_server.config import Settings, load_settings
from backup_server.db import starting
from backup_server.db.fenced import FencedDatabase
from backup_server.db.tables import Proxy
from backup_server.errors import VmhaulError
from backup_server.log import set_up_logging
from backup_server.proxies_door import ProxiesDoor
from backup_server.scheduler.loops import Loop
from backup_server.scheduler.main import Scheduler
from backup_server.services import broker_users, fleet_tokens, proxies
from backup_server.services.about import broker_url
from backup_server.services.bootstrap import open_context
from backup_server.services.broker_guard import BrokerGuard
from backup_server.services.broker_users import BrokerUsers
from backup_server.services.context import Context
from backup_server.services.engine import SessionEngine
from backup_server.services.janitor import Janitor
from backup_server.services.proxy_door import ProxyDoor, server_verify_key
from backup_server.services.storage_pool import FencedStoragePool
from backup_server.services.vcenter_pool import FencedVcenterPool, VsphereDoor
from backup_server.up.options import read_json, write_private
from backup_server.web.app import create_console
from backup_server.web.logins import Logins
from transports import vsphere
from transports.vsphere.model import Secret

TOKEN_FILE: Final = "api-token"  # noqa: S105 - a file's name
SERVER_FILE: Final = "server.json"
USERS_LOOK_S: Final = 3.0
"""Between two looks at whether the broker started anew or the list of proxies changed."""
GUARD_LOOK_S: Final = 1.0
"""Between two looks at how full the broker is."""
FLEET_LOOK_S: Final = 60.0
"""Between two looks at whether the fleet's join token has to be renewed."""
OPEN_FILES: Final = 16384
"""Connections to the doors are files; services are often started with 1,024 where they could have many more."""
GRACE_S: Final = 5
"""For requests that are being answered when the server is to end."""


def utc_now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - the composition root owns the clock


def load_or_create_token(path: Path) -> Secret:
    """The API's token: the same over restarts, so that copies of it stay good. Mode 0600."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return Secret(path.read_text().strip())
    token = secrets.token_urlsafe(32)
    with os.fdopen(handle, "w") as file:
        file.write(token + "\n")
    return Secret(token)


def _enrolment(ctx: Context, proxy_id: str, host: str) -> dict[str, Any]:
    with ctx.db.read() as s:
        access = broker_users.access_of(ctx, s, s.get_one(Proxy, proxy_id), host)
    return {
        "server_key": server_verify_key(ctx),
        "broker_url": access.url,
        "broker_ca_pem": access.ca_pem,
    }


def make_doorstep(ctx: Context, token: Secret, logins: Logins) -> Doorstep:
    """What both doors, the API's and the remote proxies', need besides the services."""
    door = ProxyDoor(ctx)
    return Doorstep(
        ctx=ctx,
        token=token,
        console_link=logins.new_link,
        answer_proxy=door.answer,
        enrolment=partial(_enrolment, ctx),
    )


def create_app(
    ctx: Context,
    token: Secret,
    *,
    start: Callable[[], None] = lambda: None,
    stop: Callable[[], None] = lambda: None,
    logins: Logins | None = None,
    step: Doorstep | None = None,
) -> Starlette:
    """API and console over one context. `start` and `stop` run with the application's life."""
    logins = logins or Logins(token, ctx.clock)
    step = step or make_doorstep(ctx, token, logins)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        del app
        await run_in_threadpool(start)
        try:
            yield
        finally:
            await run_in_threadpool(stop)

    return Starlette(
        routes=[Mount("/api", create_api(step)), Mount("/", create_console(ctx, logins))],
        lifespan=lifespan,
    )


class Server:
    """The loops of the process and the file that tells where it listens."""

    def __init__(self, ctx: Context, token: Secret, listener: socket.socket) -> None:
        self._ctx = ctx
        self._token = token
        self._file = ctx.settings.run_dir / SERVER_FILE
        host, port = listener.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._scheduler = Scheduler(ctx, broker_url(ctx), vcenter=ctx.vcenters.get, ends=ctx.ends)
        self._users = BrokerUsers(ctx)
        self._users_loop = Loop(
            "broker-users", self._keep_users, interval_s=USERS_LOOK_S, clock=ctx.clock, log=ctx.log
        )
        self._guard = BrokerGuard(ctx)
        self._guard_loop = Loop(
            "broker-guard", self._guard_broker, interval_s=GUARD_LOOK_S, clock=ctx.clock, log=ctx.log
        )
        self._fleet_loop = Loop(
            "fleet-token",
            partial(fleet_tokens.renew, ctx),
            interval_s=FLEET_LOOK_S,
            clock=ctx.clock,
            log=ctx.log,
        )
        # Two servers on one database: the one that leads works, the other waits.
        fenced = replace(
            ctx,
            db=FencedDatabase(ctx.db, self._scheduler.leadership.confirm),
            vcenters=FencedVcenterPool(ctx.vcenters, self._leading),
            storage=FencedStoragePool(ctx.storage, self._leading),
        )
        self._engine = SessionEngine(fenced, leading=self._leading)
        self._janitor = Janitor(fenced, leading=self._leading)

    def _leading(self) -> bool:
        return self._scheduler.leadership.leading

    def _keep_users(self) -> bool:
        return self._users.step() if self._leading() else False

    def _guard_broker(self) -> bool:
        return self._guard.step() if self._leading() else False

    def start(self) -> None:
        with starting.one_at_a_time(self._ctx.db):
            broker_users.ensure_passwords(self._ctx)
            try:
                # Before any proxy is started, which would be refused until then.
                self._users.apply()
            except (redis.RedisError, OSError) as error:
                self._ctx.log.warning(
                    "broker.users", text="the broker does not answer yet", error=str(error)
                )
        proxies.write_local_proxies(self._ctx)
        broker_users.write_flower_file(self._ctx)
        self._users_loop.start()
        self._guard_loop.start()
        self._fleet_loop.start()
        self._engine.start()
        self._scheduler.start()
        self._janitor.start()
        content = {"url": self.url, "token": self._token.reveal(), "pid": os.getpid()}
        write_private(self._file, content)
        self._ctx.log.info("server.started", url=self.url)

    def stop(self) -> None:
        """The lead is given up last, when nothing of ours is in hand; running tasks go on at their
        proxies.
        """
        self._ctx.log.info("server.stopping")
        self._file.unlink(missing_ok=True)
        self._ctx.stopping.set()
        self._fleet_loop.stop()
        self._fleet_loop.join(GRACE_S)
        self._guard_loop.stop()
        self._guard_loop.join(GRACE_S)
        self._guard.close()
        self._users_loop.stop()
        self._users_loop.join(GRACE_S)
        self._janitor.stop()
        self._engine.stop()
        self._scheduler.stop()


def listen(host: str, port: int, advice: str) -> socket.socket:
    """A bound socket; VmhaulError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise VmhaulError(
            f"{host}:{port} cannot be listened on ({error.strerror}): {advice}"
        ) from error
    return listener


def allow_open_files(wanted: int = OPEN_FILES) -> None:
    """As many as `wanted`, as far as the system lets this process have them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def _each(actions: Sequence[Callable[[], None]]) -> None:
    for action in actions:
        action()


def run(settings: Settings) -> None:
    """Until SIGTERM or SIGINT."""
    listener = listen(
        settings.host, settings.port, "choose another with --listen or VMHAUL_HOST and VMHAUL_PORT"
    )
    door = settings.proxies_door
    door_listener = (
        None
        if door is None
        else listen(
            door.host, door.port, "choose another with --proxies-listen or VMHAUL_PROXIES_LISTEN"
        )
    )
    ctx = open_context(
        settings,
        clock=utc_now,
        vsphere=VsphereDoor(connect=vsphere.connect, probe=vsphere.probe),
    )
    try:
        token = load_or_create_token(settings.data_dir / TOKEN_FILE)
        server = Server(ctx, token, listener)
        logins = Logins(token, ctx.clock)
        step = make_doorstep(ctx, token, logins)
        starts, stops = [server.start], [server.stop]
        if door is not None and door_listener is not None:
            proxies_door = ProxiesDoor(ctx, step, door, door_listener, clock=time.monotonic)
            starts.append(proxies_door.start)
            stops.insert(0, proxies_door.stop)
        app = create_app(
            ctx,
            token,
            start=lambda: _each(starts),
            stop=lambda: _each(stops),
            logins=logins,
            step=step,
        )
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
        )
        # uvicorn raises the signal again when it is done; without these the process would die of it
        # before the context is closed.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        ctx.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="backup_server.main")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--settings", type=Path, help="JSON file with settings, as `vmhaul up` writes")
    arguments = parser.parse_args()
    given: dict[str, Any] = read_json(arguments.settings) if arguments.settings else {}
    try:
        settings = load_settings(**{**given, "data_dir": arguments.data})
        settings.make_directories()
        allow_open_files()
        set_up_logging(level=settings.log_level, form=settings.log_format)
        # Says at every start that there is nothing to migrate.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        run(settings)
    except VmhaulError as error:
        print(f"vmhaul server: {error}", file=sys.stderr)  # noqa: T201 - logging may not be up yet
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
