"""What the scheduler asks of the server's context, and the values it derives from the settings."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Protocol

from backup_server.config import Settings
from backup_server.db.engine import Database
from backup_server.services.context import Clock
from backup_server.services.results import RetryPolicy, policy_of


class SchedulerContext(Protocol):
    """The part of `services.context.Context` that the loops use."""

    @property
    def settings(self) -> Settings: ...
    @property
    def server_id(self) -> str: ...
    @property
    def db(self) -> Database: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def log(self) -> Any: ...
    @property
    def wake_engine(self) -> threading.Event: ...
    @property
    def wake_dispatcher(self) -> threading.Event: ...
    @property
    def wake_janitor(self) -> threading.Event: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Intervals of the loops that no administrator needs to know. Seconds."""

    leader_ttl_s: float = 10.0
    report_batch_s: float = 0.2
    """At most one transaction of heartbeats and progress in this time; results do not wait."""
    report_block_s: float = 1.0
    outbox_idle_s: float = 1.0
    audit_s: float = 15.0
    """Between two comparisons of index and database."""
    facts_s: float = 0.5
    """How old what is known of proxies and limits may be while the dispatcher is busy; each claim is checked with
    what SQL says then.
    """
    due_jobs_s: float = 5.0
    rates_s: float = 2.0
    """How soon a task gets what another that ended does not need any more."""
    latency_s: float = 20.0
    """ESXi hosts measure so often."""
    spill_s: float = 2.0
    """How long a task waits for a free slot of a better mode before a worse one takes it."""
    no_proxy_timeout_s: float = 1800.0
    """A task that no proxy can take for so long fails: its VM's snapshot grows all the while."""


def retry_policy(settings: Settings) -> RetryPolicy:
    return policy_of(settings)
