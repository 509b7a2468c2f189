"""What every service is handed: one value, put together once by the composition root."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import structlog

from backup_server.config import Settings
from backup_server.credentials import CredentialStore
from backup_server.db.engine import Database
from backup_server.services.lookups import Lookups
from backup_server.services.repository_agent import AgentPool
from backup_server.services.storage_pool import StoragePool
from backup_server.services.task_ends import Ends
from backup_server.services.turns import Turns
from backup_server.services.vcenter_pool import VcenterPool

Clock = Callable[[], datetime]
"""Aware, UTC."""

OPERATION_END_S: Final = 10.0
"""How long the end of a server waits for what it does on a machine; what is cut off is found at the next start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Everything that services need. `with ctx.db() as s` is a write transaction, `ctx.db.read()` a
    read; both are `backup_server.db.engine.Database`.
    """

    settings: Settings
    server_id: str
    """UUID of this installation; stands in every mark that vmhaul leaves in a vCenter."""
    db: Database
    clock: Clock
    started_at: datetime
    credentials: CredentialStore
    vcenters: VcenterPool
    agents: AgentPool
    storage: StoragePool
    log: Any = field(default_factory=structlog.get_logger)
    wake_engine: threading.Event = field(default_factory=threading.Event)
    """Set after a commit that gives the session engine something to do."""
    wake_dispatcher: threading.Event = field(default_factory=threading.Event)
    """Set after a commit that inserted pending tasks or freed what they wait for."""
    wake_janitor: threading.Event = field(default_factory=threading.Event)
    """Set after a commit that ended an attempt in the middle: what it left is looked for at once."""
    attaching: Turns[Any, Any] = field(default_factory=Turns)
    """Of VMs whose disks are changed; keys are those of services.attachments."""
    writing_broker_users: threading.Lock = field(default_factory=threading.Lock)
    """Held by who reads from SQL whom to trust and writes it into the broker."""
    ends: Ends | None = None
    """Between which machines data move; None: nobody finds out."""
    lookups: Lookups | None = None
    """What `ends` asks."""
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set when the process is to end; waits inside of steps end with it."""

    at_work: list[threading.Thread] = field(default_factory=list)
    """Threads of operations (services/operations.py); they end at their next step once `stopping` is set."""

    def close(self) -> None:
        """End connections and children. The loops must have been stopped before."""
        self.stopping.set()
        for thread in self.at_work:
            thread.join(OPERATION_END_S)
        if self.lookups is not None:
            self.lookups.close()
        self.agents.close()
        self.vcenters.close()
        self.storage.close()
        self.db.close()
