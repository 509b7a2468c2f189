"""Putting the services' context together: keys, database, pools, and what a first start makes."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from backup_server.config import Settings
from backup_server.credentials import CredentialStore, load_or_create_key
from backup_server.db import starting
from backup_server.db.engine import Database, open_database
from backup_server.db.tables import Setting, new_id
from backup_server.services import counters, deployments, instances, proxies
from backup_server.services.agent_link import AgentProcess, StartAgent
from backup_server.services.context import Clock, Context
from backup_server.services.lookups import Lookups
from backup_server.services.repository_agent import AgentPool
from backup_server.services.storage_pool import StoragePool
from backup_server.services.task_ends import Ends
from backup_server.services.vcenter_pool import VcenterPool, VsphereDoor
from transports.storage_systems.base import StorageDriver
from transports.storage_systems.registry import storage_drivers as all_drivers

SERVER_ID = "server_id"
DEFAULT_PROXY_MADE = "default_proxy_made"


def open_context(
    settings: Settings,
    *,
    clock: Clock,
    vsphere: VsphereDoor,
    start_agent: StartAgent | None = None,
    database: Database | None = None,
    storage_drivers: Mapping[str, StorageDriver] | None = None,
) -> Context:
    """A context ready to be used; close it with `ctx.close()`.

    SettingsError or UnavailableError when the data directory, a key or the database forbid a start.
    """
    settings.make_directories()
    credentials = CredentialStore(load_or_create_key(settings.server_key_file))
    load_or_create_key(settings.signing_key_file)
    db = database or open_database(settings.database_url)
    with starting.one_at_a_time(db):
        instances.check_keys(db, settings)
        server_id = _server_id(db)
    log_file = settings.log_dir / "repository-agent.log"
    vcenters = VcenterPool(db, credentials, vsphere, clock=clock, keep_alive_s=settings.keep_alive_s)
    lookups = Lookups(clock, structlog.get_logger())
    context = Context(
        settings=settings,
        server_id=server_id,
        db=db,
        clock=clock,
        started_at=clock(),
        credentials=credentials,
        vcenters=vcenters,
        lookups=lookups,
        ends=Ends(vcenters.get, lookups),
        agents=AgentPool(
            db,
            credentials,
            start_agent or (lambda: AgentProcess(log_file, cache_dir=settings.data_dir / "cache")),
            timeout_s=settings.agent_timeout_s,
            long_timeout_s=settings.agent_long_timeout_s,
        ),
        storage=StoragePool(
            db, credentials, all_drivers() if storage_drivers is None else storage_drivers
        ),
    )
    _first_start(context)
    return context


def _server_id(db: Database) -> str:
    with db() as s:
        counters.prepare(s)
        row = s.get(Setting, SERVER_ID)
        if row is None:
            row = Setting(name=SERVER_ID, value=new_id())
            s.add(row)
        return row.value


def _first_start(ctx: Context) -> None:
    with starting.one_at_a_time(ctx.db):
        with ctx.db.read() as s:
            made = s.get(Setting, DEFAULT_PROXY_MADE) is not None
        # A person may remove the default proxy: it is offered once, not at every start.
        if not made and ctx.settings.default_proxy:
            proxies.ensure_default(ctx)
            with ctx.db() as s:
                s.merge(Setting(name=DEFAULT_PROXY_MADE, value="yes"))
    proxies.put_local_files_right(ctx)
    deployments.recover(ctx)
