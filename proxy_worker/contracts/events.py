"""Stable names of what server and proxy write to their logs about tasks."""

from __future__ import annotations

from enum import StrEnum


class EventName(StrEnum):
    PROXY_ONLINE = "proxy.online"
    PROXY_OFFLINE = "proxy.offline"
    PROXY_RESTARTED = "proxy.restarted"
    PROXY_CLOCK = "proxy.clock"
    MESSAGE_REFUSED = "message.refused"
    TASK_PLACED = "task.placed"
    TASK_SENT = "task.sent"
    TASK_WAITS = "task.waits"
    TASK_STARTED = "task.started"
    TASK_FINISHED = "task.finished"
    TASK_RETRIED = "task.retried"
    TASK_MODE_LEFT = "task.mode-left"
    TASK_MOVED = "task.moved"
    TASK_GIVEN_UP = "task.given-up"
    TASK_CANCELLED = "task.cancelled"
    TASK_REFUSED = "task.refused"
    LEASE_LOST = "lease.lost"
    LEASE_EXPIRED = "lease.expired"
    CLOCK_WENT_BACK = "clock.went-back"
    RESULT_STALE = "result.stale"
    INDEX_REBUILT = "index.rebuilt"
    BROKER_AWAY = "broker.away"
    BROKER_BACK = "broker.back"
    LEADER_TAKEN = "leader.taken"
    LEADER_LOST = "leader.lost"
    MOVER_STARTED = "mover.started"
    MOVER_CRASHED = "mover.crashed"
