"""Traffic rules and datastores through the API."""

from __future__ import annotations

from typing import Any

import pytest

from backup_server.api import answers
from backup_server.services import datastore_loads
from backup_server.services.context import Context
from backup_server.services.latency import Control
from tests.support.asgi import AsgiClient
from tests.support.history import Clock, Seeded

RULE = {"name": "branch", "source": ["10.0.0.0/16"], "target": ["any"], "rate": "200Mbit"}


def test_a_rule_comes_and_goes(api: AsgiClient) -> None:
    hours = {"text": "mon-fri 08:00-18:00", "time_zone": "Europe/Berlin"}
    body = {**RULE, "windows": [{"window": hours, "rate": "20Mbit"}]}
    added = api.post("/traffic-rules", json=body)
    assert added.status_code == 200, added.text
    answers.TrafficRule.model_validate(added.json())
    assert added.json()["windows"][0]["rate_bytes_per_s"] == 2_500_000
    answers.Page[answers.TrafficRule].model_validate(api.get("/traffic-rules").json())
    changed = api.patch("/traffic-rules/branch", json={"rate": "1Gbit", "encrypt": True}).json()
    assert (changed["rate"], changed["encrypt"], changed["target"]) == ("1 Gbit/s", True, ["any"])
    assert changed["windows"] == added.json()["windows"]
    assert api.post("/traffic-rules", json=RULE).status_code == 409
    assert api.delete("/traffic-rules/branch").status_code == 204
    assert api.get("/traffic-rules/branch").status_code == 404


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rate": "fast"}, "rate"),
        ({"source": ["here"]}, "source"),
        ({"windows": [{"window": {"text": "never"}, "rate": "1Mbit"}]}, "windows"),
    ],
)
def test_a_wrong_rule_names_the_field(api: AsgiClient, changes: dict[str, Any], field: str) -> None:
    answer = api.post("/traffic-rules", json={**RULE, **changes})
    assert answer.status_code == 422
    assert field in answer.json()["error"]["details"]


def test_a_datastore_shows_what_holds_and_what_was_measured(
    api: AsgiClient, ctx: Context, seeded: Seeded, clock: Clock
) -> None:
    del seeded
    with ctx.db() as s:
        row = datastore_loads.row_of(s, "vc-1", "ssd")
        row.measured_at, row.read_latency_ms = clock(), 40.0
        row.control = Control(closed_since=clock(), allowance_bytes_per_s=9).to_json()
    (found,) = api.get("/datastores").json()["items"]
    answers.Datastore.model_validate(found)
    assert (found["vcenter"], found["name"], found["read_latency_ms"]) == ("prod", "ssd", 40.0)
    assert found["running_tasks"] + found["pending_tasks"] > 0
    assert found["closed_since"]
    assert found["allowance_bytes_per_s"] == 9
    edited = api.patch("/datastores/prod/ssd", json={"max_tasks": 3, "latency_stop_ms": 50})
    assert edited.status_code == 200, edited.text
    assert edited.json()["allowed"]["max_tasks"] == 3
    assert edited.json()["allowed"]["latency_throttle_ms"] == 50, "never below the other"
    back = api.patch("/datastores/prod/ssd", json={"max_tasks": None}).json()
    assert back["settings"]["max_tasks"] is None
    assert back["allowed"]["max_tasks"] == ctx.settings.datastore_max_tasks
    assert api.get("/datastores?vcenter=prod").json()["items"][0]["name"] == "ssd"


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"max_tasks": -1}, 422),
        ({"max_snapshots": 0}, 422),
        ({"latency_stop_ms": 0}, 422),
        ({"latency_stop_ms": 30, "latency_throttle_ms": 20}, 422),
        ({"colour": "red"}, 422),
    ],
)
def test_what_a_datastore_cannot_be_set_to(
    api: AsgiClient, seeded: Seeded, changes: dict[str, Any], status: int
) -> None:
    del seeded
    assert api.patch("/datastores/prod/ssd", json=changes).status_code == status


def test_a_datastore_that_nobody_knows(api: AsgiClient, seeded: Seeded) -> None:
    del seeded
    assert api.get("/datastores/prod/nothing").status_code == 404
    assert api.patch("/datastores/nobody/ssd", json={"max_tasks": 1}).status_code == 404
