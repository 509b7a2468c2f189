"""What a worker makes of one message about all the leases that it keeps."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

from proxy_worker.contracts.ids import Attempt, TaskId
from proxy_worker.contracts.messages import LeasesHeld, RunningTask
from proxy_worker.service import ProxyService
from proxy_worker.slots import Slots
from tests.unit.proxy_worker.test_small_parts import order


def test_one_message_holds_all_leases_that_a_heartbeat_asked_for() -> None:
    slots, sent_at_s = Slots(3), {4: 100.0}
    handles = [slots.begin(replace(order(name), lease_s=40.0)) for name in ("a", "b", "c")]
    until: list[list[float]] = [[], [], []]
    for handle, ends in zip(handles, until, strict=True):
        handle.follow_lease(ends.append)
    parts: Any = SimpleNamespace(_slots=slots, _heartbeat=SimpleNamespace(sent_at_s=sent_at_s.get))
    parts._lease_held = partial(ProxyService._lease_held, parts)
    named = tuple(RunningTask(task_id=TaskId(name), attempt=Attempt(1)) for name in ("a", "c", "over"))
    ProxyService._on_message(parts, LeasesHeld(sequence=4, held=named))
    assert until == [[130.0], [], [130.0]]
    # Of a heartbeat that is long forgotten nobody knows when it was sent.
    ProxyService._on_message(parts, LeasesHeld(sequence=3, held=named))
    assert until == [[130.0], [], [130.0]]
