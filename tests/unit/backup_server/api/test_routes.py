"""Every noun through the API, with real services; answers are as `answers` describes them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from backup_server.api import answers
from backup_server.db.tables import Repository, Vcenter
from backup_server.services.context import Context
from tests.support.asgi import AsgiClient
from tests.support.history import Clock, Seeded


def read(api: AsgiClient, path: str, model: type[BaseModel]) -> Any:
    """The answer, held against its description."""
    response = api.get(path)
    assert response.status_code == 200, response.text
    model.model_validate(response.json())
    return response.json()


def job_body(**changes: Any) -> dict[str, Any]:
    return {
        "name": "weekly",
        "vcenter": "prod",
        "repository": "main",
        "selection": {"include": [{"type": "all"}]},
        **changes,
    }


def test_about(api: AsgiClient, ctx: Context) -> None:
    about = read(api, "/about", answers.About)
    assert about["server_id"] == ctx.server_id
    assert about["flower_url"] is None


def test_doctor(api: AsgiClient, seeded: Seeded) -> None:
    checks = read(api, "/doctor", answers.Checks)["checks"]
    broker = next(check for check in checks if check["name"] == "broker")
    assert broker["level"] == "error"


def test_the_thumbprint_is_shown_before_anything_is_sent(api: AsgiClient) -> None:
    shown = api.post("/vcenters/probe", json={"host": "vc", "port": 8443}).json()
    answers.Probe.model_validate(shown)


def test_vcenters(api: AsgiClient, seeded: Seeded) -> None:
    listed = read(api, "/vcenters", answers.Page[answers.Vcenter])
    assert [item["name"] for item in listed["items"]] == ["prod"]
    assert read(api, "/vcenters/prod", answers.Vcenter) == read(api, "/vcenters/vc-1", answers.Vcenter)
    assert "password" not in api.get("/vcenters/prod").text
    refused = api.delete("/vcenters/prod")
    assert refused.status_code == 409
    assert "nightly" in refused.json()["error"]["message"]


def test_repositories(api: AsgiClient, seeded: Seeded) -> None:
    listed = read(api, "/repositories", answers.Page[answers.Repository])
    assert listed["items"][0]["location"] == "/backup/vmhaul"
    changed = api.patch("/repositories/main", json={"name": "first", "max_tasks": 3}).json()
    assert (changed["name"], changed["max_tasks"]) == ("first", 3)
    short = api.post("/repositories", json={"name": "r", "location": "/r", "password": "short"})
    assert short.status_code == 422
    assert "password" in short.json()["error"]["details"]


@pytest.mark.parametrize("verb", ["check", "rescan", "prune"])
def test_maintenance_is_a_session(api: AsgiClient, ctx: Context, seeded: Seeded, verb: str) -> None:
    response = api.post(f"/repositories/main/{verb}", json={})
    assert response.status_code == 200, response.text
    answers.Session.model_validate(response.json())
    assert response.json()["state"] == "queued"


def test_proxies(api: AsgiClient) -> None:
    added = api.post("/proxies", json={"name": "far", "slots": 4, "description": "second site"}).json()
    answers.ProxyWithToken.model_validate(added)
    assert added["join_token"]
    shown = read(api, "/proxies/far", answers.Proxy)
    assert "join_token" not in shown
    assert shown["state"] == "never-seen"
    off = api.patch("/proxies/far", json={"enabled": False, "slots": 2}).json()
    assert (off["enabled"], off["slots"]) == (False, 2)
    assert api.patch("/proxies/far", json={"modes": ["carrier pigeon"]}).status_code == 422
    assert api.delete("/proxies/far").status_code == 204
    assert api.get("/proxies/far").status_code == 404


def test_a_join_token_works_once(api: AsgiClient, stranger: AsgiClient) -> None:
    added = api.post("/proxies", json={"name": "far"}).json()
    body = {
        "token": added["join_token"],
        "name": "far",
        "signing_key": "ab" * 32,
        "sealing_key": "cd" * 32,
        "version": "unknown",
    }
    wrong = stranger.post("/enrol", json={**body, "token": "guessed"})
    assert wrong.status_code == 401
    taken_in = stranger.post("/enrol", json=body)
    answers.Enrolment.model_validate(taken_in.json())
    assert taken_in.json()["proxy_id"] == added["id"]
    assert len(bytes.fromhex(taken_in.json()["server_key"])) == 32
    # The same machine may ask again, as the answer may have been lost; another may not.
    assert stranger.post("/enrol", json=body).json()["proxy_id"] == added["id"]
    assert stranger.post("/enrol", json={**body, "signing_key": "ef" * 32}).status_code == 401


def test_a_new_join_token_ends_the_trust_in_the_old_keys(api: AsgiClient) -> None:
    api.post("/proxies", json={"name": "far"})
    renewed = api.post("/proxies/far/join-token").json()
    answers.ProxyWithToken.model_validate(renewed)
    assert renewed["join_token"]


@pytest.mark.parametrize("body", [b"", b"nonsense", b"a.b", b"\xff\xfe", b"x" * 20_000])
def test_secrets_are_not_for_strangers(stranger: AsgiClient, body: bytes) -> None:
    response = stranger.post("/proxy/secrets", content=body, headers={"content-type": "text/plain"})
    assert response.status_code in {400, 401}
    assert set(response.json()) == {"error"}


def test_jobs(api: AsgiClient, seeded: Seeded) -> None:
    created = api.post(
        "/jobs", json=job_body(schedule={"cron": "0 3 * * 0", "time_zone": "Europe/Berlin"})
    )
    assert created.status_code == 200, created.text
    job = read(api, "/jobs/weekly", answers.Job)
    assert job == created.json()
    assert job["next_run_at"]
    assert job["retention"] == {"keep": 14}
    changed = api.patch("/jobs/weekly", json={"schedule": None, "retention": {"days": 30}}).json()
    assert changed["next_run_at"] is None
    assert changed["retention"] == {"days": 30}
    assert changed["selection"] == job["selection"]
    listed = read(api, "/jobs", answers.Page[answers.Job])
    assert [item["name"] for item in listed["items"]] == ["nightly", "weekly"]
    assert api.delete("/jobs/weekly").status_code == 204


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"vcenter": "nowhere"}, "vcenter"),
        ({"schedule": {"cron": "every day"}}, "schedule"),
        ({"schedule": {"cron": "0 3 * * *", "time_zone": "Mars/Base"}}, "schedule"),
        ({"proxies": ["nobody"]}, "proxies"),
        ({"modes": ["teleport"]}, "modes"),
        ({"selection": {"include": []}}, "selection"),
    ],
)
def test_a_job_that_cannot_be(
    api: AsgiClient, seeded: Seeded, changes: dict[str, Any], field: str
) -> None:
    response = api.post("/jobs", json=job_body(**changes))
    assert response.status_code == 422, response.text
    assert field in response.json()["error"]["details"]


def test_a_job_runs_once_at_a_time(api: AsgiClient, seeded: Seeded) -> None:
    api.post("/jobs", json=job_body())
    started = api.post("/jobs/weekly/run", json={"full": True})
    answers.Session.model_validate(started.json())
    again = api.post("/jobs/weekly/run")
    assert again.status_code == 409
    assert again.json()["error"]["details"]["session"] == started.json()["id"]


def test_lists_come_in_pages(api: AsgiClient, seeded: Seeded) -> None:
    for number in range(5):
        api.post("/jobs", json=job_body(name=f"job-{number}"))
    names: list[str] = []
    cursor: str | None = None
    while True:
        query = f"&cursor={cursor}" if cursor else ""
        page = read(api, f"/jobs?limit=2{query}", answers.Page[answers.Job])
        assert len(page["items"]) <= 2
        names += [item["name"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert names == [*(f"job-{number}" for number in range(5)), "nightly"]


def test_sessions(api: AsgiClient, seeded: Seeded) -> None:
    listed = read(api, "/sessions", answers.Page[answers.Session])
    assert [item["id"] for item in listed["items"]] == [seeded.running_id, seeded.finished_id]
    first = read(api, "/sessions?limit=1", answers.Page[answers.Session])
    second = api.get("/sessions", params={"limit": 1, "cursor": first["next"]}).json()
    assert [item["id"] for item in second["items"]] == [seeded.finished_id]
    assert read(api, "/sessions?state=running&job=nightly&kind=backup", answers.Page[answers.Session])[
        "items"
    ]
    assert api.get("/sessions?state=asleep").status_code == 422
    session = read(api, f"/sessions/{seeded.running_id}", answers.SessionWithVms)
    assert [vm["name"] for vm in session["vms"]] == ["db01", "web01"]
    assert session["vms"][0]["tasks"][0]["proxy"] == "default"


def test_events_are_read_from_where_one_was(api: AsgiClient, seeded: Seeded) -> None:
    path = f"/sessions/{seeded.running_id}/events"
    events = read(api, path, answers.Page[answers.Event])["items"]
    assert [event["level"] for event in events] == ["info", "info", "warning", "error"]
    rest = read(api, f"{path}?after={events[1]['id']}", answers.Page[answers.Event])["items"]
    assert rest == events[2:]
    part = read(api, f"{path}?limit=3", answers.Page[answers.Event])
    assert part["next"] == str(events[2]["id"])
    assert api.get(f"{path}?after={1 << 63}").status_code == 422
    assert api.get(f"/sessions/{seeded.running_id}?cursor={1 << 63}").status_code == 422


def test_cancelling_is_asked_for(api: AsgiClient, seeded: Seeded) -> None:
    cancelled = api.post(f"/sessions/{seeded.running_id}/cancel")
    answers.Session.model_validate(cancelled.json())
    assert cancelled.json()["cancel_requested"] is True
    assert api.post(f"/sessions/{seeded.finished_id}/cancel").status_code == 409


def test_what_a_proxy_looks_at(api: AsgiClient, seeded: Seeded) -> None:
    changes = {"connected_datastores": ["ssd"], "failover_to_network": False, "max_nfs_hops": 2}
    shown = read_changed(api, "/proxies/default", changes)
    assert shown["connected_datastores"] == ["ssd"]
    assert shown["discovery"]["datastores"] == []
    assert api.patch("/proxies/default", json={"preferred_networks": ["x"]}).status_code == 422
    limited = read_changed(api, "/proxies/default", {"rate_limit": "400Mbit", "rate_restores": True})
    assert (limited["rate_limit_bytes_per_s"], limited["rate_now"]) == (50_000_000, "400 Mbit/s")
    free = read_changed(api, "/proxies/default", {"rate_limit": None})
    assert (free["rate_limit_bytes_per_s"], free["rate_restores"]) == (None, True)
    asked = api.post("/proxies/default/rescan")
    assert asked.status_code == 200
    assert asked.json()["looked_at"] is None
    assert api.post("/proxies/nobody/rescan").status_code == 404


def read_changed(api: AsgiClient, path: str, changes: dict[str, object]) -> dict[str, Any]:
    answered = api.patch(path, json=changes)
    assert answered.status_code == 200
    answers.ProxyWithDiscovery.model_validate(answered.json())
    return dict(answered.json())


def test_why_a_task_runs_where_it_runs(api: AsgiClient, seeded: Seeded) -> None:
    why = api.get(f"/tasks/{seeded.task_id}/why").json()
    assert why["decision"]["candidates"][0]["name"] == "default"
    assert api.get("/tasks/none/why").status_code == 404


def test_restore_points(api: AsgiClient, seeded: Seeded) -> None:
    listed = read(
        api, "/restore-points?vm=db01&repository=main&job=nightly", answers.Page[answers.RestorePoint]
    )
    assert [item["id"] for item in listed["items"]] == [seeded.point_id]
    assert read(api, "/restore-points?vm=web01", answers.Page[answers.RestorePoint])["items"] == []
    point = read(api, f"/restore-points/{seeded.point_id}", answers.RestorePoint)
    assert point["disks"][0]["label"] == "Hard disk 1"


def test_restores_are_sessions(api: AsgiClient, seeded: Seeded) -> None:
    body = {"restore_point": seeded.point_id, "disk": 1, "path": "/restore/db01.raw"}
    disk = api.post("/restores/disk", json=body)
    assert disk.status_code == 200, disk.text
    answers.Session.model_validate(disk.json())
    assert disk.json()["kind"] == "restore"
    wrong = api.post("/restores/disk", json={**body, "disk": 9})
    assert wrong.status_code in {404, 422}
    busy = api.delete(f"/restore-points/{seeded.point_id}")
    assert busy.status_code == 409


def test_the_console_link_works_once(api: AsgiClient, stranger: AsgiClient, clock: Clock) -> None:
    link = api.post("/console-links").json()
    answers.ConsoleLink.model_validate(link)
    assert link["path"].startswith("/login?code=")
    assert stranger.post("/console-links").status_code == 401


def test_metrics_count(stranger: AsgiClient, seeded: Seeded) -> None:
    text = stranger.get("/metrics").text
    assert 'vmhaul_sessions_open{kind="backup",state="running"} 1.0' in text
    assert 'vmhaul_proxy_running_tasks{proxy="default"} 1.0' in text
    assert "vmhaul_repository_free_bytes" in text


def test_passwords_are_sealed(api: AsgiClient, ctx: Context, seeded: Seeded) -> None:
    with ctx.db.read() as s:
        rows = [*s.query(Vcenter), *s.query(Repository)]
    for row in rows:
        assert "password" not in {column.key for column in row.__table__.columns}
