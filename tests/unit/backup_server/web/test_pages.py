from __future__ import annotations

import re
from datetime import timedelta

import pytest
import sqlalchemy as sa

from backup_server.db.tables import Job, OutboxRow, Proxy, Session, Task
from backup_server.services import jobs, sessions
from backup_server.services.context import Context
from backup_server.web.logins import COOKIE, LINK_S, Logins
from backup_server.web.views.overview import warnings
from tests.support.asgi import AsgiClient
from tests.support.history import FINISHED, POINT, RUNNING, Clock, Seeded
from tests.unit.backup_server.conftest import TOKEN

PAGES = [
    "/",
    "/jobs",
    "/jobs/nightly",
    "/sessions",
    f"/sessions/{RUNNING}",
    f"/sessions/{FINISHED}",
    "/restore-points",
    "/restore-points?vm=db01",
    f"/restore-points/{POINT}",
    "/proxies",
    "/proxies/default",
    "/tasks/task-run-1",
    "/repositories",
    "/storage",
    "/traffic",
    "/jobs/nightly/retention",
    "/jobs/nightly/retention?base=days&count=3&weekly=2",
    "/jobs/nightly/retention?count=none",
    "/fragments/overview",
    f"/fragments/sessions/{RUNNING}",
    "/fragments/proxies",
]


def form_token(page: str) -> str:
    found = re.search(r'name="form_token" value="([0-9a-f]+)"', page)
    assert found
    return found[1]


@pytest.mark.parametrize("path", PAGES)
def test_every_page_shows_what_is_there(console: AsgiClient, seeded: Seeded, path: str) -> None:
    response = console.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert "None" not in re.sub(r"<[^>]+>", " ", response.text)


@pytest.mark.parametrize("path", [path for path in PAGES if not re.search("nightly|0000|task-", path)])
def test_every_page_of_an_empty_installation(console: AsgiClient, path: str) -> None:
    assert console.get(path).status_code == 200


@pytest.mark.parametrize("path", PAGES)
def test_without_login_there_is_only_the_login(stranger: AsgiClient, seeded: Seeded, path: str) -> None:
    response = stranger.get(path)
    assert (response.status_code, response.headers["location"]) == (303, "/login")


def test_nothing_comes_from_elsewhere(console: AsgiClient, seeded: Seeded) -> None:
    for path in PAGES:
        response = console.get(path)
        assert not re.search(r'(?:src|href|action)="(?:https?:)?//', response.text)
        assert "style=" not in response.text
        assert "default-src 'self'" in response.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
    for asset in ("console.css", "console.js", "mark.svg"):
        assert console.get(f"/static/{asset}").status_code == 200


def test_the_cookie_is_for_this_site_and_not_for_scripts(stranger: AsgiClient) -> None:
    response = stranger.post("/login", data={"token": TOKEN})
    cookie = response.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert TOKEN not in cookie


def test_a_wrong_token(stranger: AsgiClient) -> None:
    response = stranger.post("/login", data={"token": "guessed"})
    assert response.status_code == 401
    assert "set-cookie" not in response.headers
    assert "not the token" in response.text


def test_a_one_time_link(stranger: AsgiClient, clock: Clock) -> None:
    api = "http://127.0.0.1/api/v1/console-links"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    path = stranger.post(api, headers=headers).json()["path"]
    assert stranger.get(path).status_code == 303
    assert stranger.get("/").status_code == 200
    stranger.cookies.clear()
    assert stranger.get(path).status_code == 401
    old = stranger.post(api, headers=headers).json()["path"]
    clock.now += timedelta(seconds=LINK_S + 1)
    assert stranger.get(old).status_code == 401


def test_logging_out(console: AsgiClient) -> None:
    token = form_token(console.get("/").text)
    assert console.post("/logout", data={"form_token": token}).headers["location"] == "/login"
    assert COOKIE not in console.cookies


def test_what_guests_are_called_is_text(console: AsgiClient, seeded: Seeded) -> None:
    page = console.get(f"/sessions/{RUNNING}").text
    assert "tried again &lt;b&gt;" in page


def test_the_session_page(console: AsgiClient, seeded: Seeded) -> None:
    page = console.get(f"/sessions/{RUNNING}").text
    assert f'data-refresh="/fragments/sessions/{RUNNING}"' in page
    assert '<progress max="100" value="75"' in page
    assert "180.0 MB/s" in page
    assert "bottleneck source" in page
    assert "named by the job but does not exist" in page
    assert "tpl-web left out: a template is not backed up" in page
    finished = console.get(f"/sessions/{FINISHED}").text
    assert "data-refresh" not in finished
    assert "data-finished" in finished
    assert "first backup of this VM" in finished
    assert "the guest could not be quiesced" in finished
    assert "Cancel" not in finished


def test_cancelling_needs_the_form_of_this_login(
    console: AsgiClient, ctx: Context, seeded: Seeded, clock: Clock
) -> None:
    path = f"/sessions/{RUNNING}/cancel"
    for wrong in ({}, {"form_token": ""}, {"form_token": "0" * 64}):
        assert console.post(path, data=wrong).status_code == 403
    logins = ctx_logins(clock)
    assert (
        console.post(path, data={"form_token": logins.form_token(logins.new_cookie())}).status_code
        == 403
    )
    assert sessions.get(ctx, RUNNING)["cancel_requested"] is False

    token = form_token(console.get(f"/sessions/{RUNNING}").text)
    response = console.post(path, data={"form_token": token})
    assert (response.status_code, response.headers["location"]) == (303, f"/sessions/{RUNNING}")
    assert sessions.get(ctx, RUNNING)["cancel_requested"] is True
    assert "being cancelled" in console.get(f"/sessions/{RUNNING}").text


def test_why_a_task_is_where_it_is(console: AsgiClient, seeded: Seeded) -> None:
    page = console.get(f"/tasks/{seeded.task_id}").text
    assert "<h2>Candidates</h2>" in page
    assert '<span class="badge chosen">chosen</span>' in page
    assert "sends data in clear" in page
    assert f"/tasks/{seeded.task_id}" in console.get(f"/sessions/{RUNNING}").text
    assert console.get("/tasks/nothing").status_code == 404


def test_a_proxy_is_asked_to_look_around(console: AsgiClient, ctx: Context, seeded: Seeded) -> None:
    page = console.get("/proxies/default").text
    assert "It has not looked around yet." in page
    response = console.post("/proxies/default/rescan", data={"form_token": form_token(page)})
    assert response.status_code == 303
    with ctx.db.read() as s:
        [row] = s.scalars(sa.select(OutboxRow).where(OutboxRow.kind == "rescan"))
    assert response.headers["location"] == f"/proxies/{row.proxy_id}"


def ctx_logins(clock: Clock) -> Logins:
    from transports.vsphere.model import Secret

    return Logins(Secret(TOKEN), clock)


def test_running_a_job(console: AsgiClient, ctx: Context, seeded: Seeded) -> None:
    token = form_token(console.get("/jobs").text)
    busy = console.post("/jobs/nightly/run", data={"form_token": token})
    assert busy.status_code == 409
    assert "running already" in busy.text
    jobs.create(
        ctx,
        {
            "name": "weekly",
            "vcenter": "prod",
            "repository": "main",
            "selection": {"include": [{"type": "all"}]},
        },
    )
    started = console.post("/jobs/weekly/run", data={"form_token": token})
    assert started.status_code == 303
    assert console.get(started.headers["location"]).status_code == 200


def test_restore_points_show_the_command(console: AsgiClient, seeded: Seeded) -> None:
    page = console.get(f"/restore-points/{POINT}").text
    assert f"vmhaul restore disk {POINT[:8]} --disk 1 --to disk.raw" in page


def test_a_page_that_does_not_exist(console: AsgiClient) -> None:
    assert console.get("/nowhere").status_code == 404
    missing = console.get("/sessions/12345678")
    assert missing.status_code == 404
    assert "no session has an id that begins with" in missing.text


def test_first_steps_end_when_they_are_done(console: AsgiClient, ctx: Context) -> None:
    from tests.support.history import seed

    assert "vmhaul vcenter add" in console.get("/").text
    seed(ctx)
    page = console.get("/").text
    assert "First steps" not in page
    assert "nightly" in page


def test_warnings_name_what_needs_a_look() -> None:
    found = warnings(
        [{"name": "nightly", "last_session": {"result": "failed", "reason": "no VM was found."}}],
        [{"name": "default", "enabled": True, "state": "offline"}],
        [
            {
                "name": "main",
                "free_bytes": 1,
                "total_bytes": 100,
                "last_check": {"result": "failed"},
            },
            {"name": "new", "free_bytes": None, "total_bytes": None, "last_check": None},
        ],
    )
    assert found == [
        "Proxy default does not answer.",
        "No proxy is online: tasks wait until one is.",
        "Job nightly failed: no VM was found.",
        "The last check of repository main failed: see its session.",
        "Repository main is nearly full.",
    ]


def test_a_proxy_that_gets_no_tasks_says_so_wherever_it_is_shown(
    console: AsgiClient, ctx: Context, seeded: Seeded
) -> None:
    with ctx.db() as s:
        s.query(Proxy).filter_by(name="default").one().state_note = "its clock is 400 s ahead"
    for path in ("/", "/proxies", "/fragments/proxies", "/proxies/default"):
        assert "no new tasks: its clock is 400 s ahead" in console.get(path).text, path


def test_a_task_that_waits_tells_when_that_could_change(
    console: AsgiClient, ctx: Context, seeded: Seeded, clock: Clock
) -> None:
    with ctx.db() as s:
        task = s.get_one(Task, seeded.task_id)
        task.state, task.proxy_id, task.not_before = "pending", None, clock.now + timedelta(minutes=5)
    page = console.get(f"/tasks/{seeded.task_id}").text
    assert "Could change when the pause after the last failure ends" in page
    assert "2026-11-23 02:35 UTC" in page


def test_a_session_tells_until_when_it_waits_and_why_it_stops(
    console: AsgiClient, ctx: Context, seeded: Seeded, clock: Clock
) -> None:
    with ctx.db() as s:
        s.get_one(Session, RUNNING).stop_reason = "the window closed"
    assert "the window closed" in console.get(f"/sessions/{RUNNING}").text
    with ctx.db() as s:
        session = s.get_one(Session, RUNNING)
        session.state, session.stop_reason = "queued", ""
        session.options = {"not_before": (clock.now + timedelta(hours=1)).isoformat()}
    page = console.get(f"/sessions/{RUNNING}").text
    assert "Waits until" in page
    assert "2026-11-23 03:30 UTC" in page


def test_a_job_that_follows_another_does_not_run_by_hand(
    console: AsgiClient, ctx: Context, seeded: Seeded
) -> None:
    with ctx.db() as s:
        job = s.get_one(Job, seeded.job_id)
        job.schedule, job.after_job_id = None, job.id
    for path in ("/", "/jobs", "/jobs/nightly"):
        page = console.get(path).text
        assert page.count("after nightly") == 1, path
        assert "by hand" not in page, path


def test_a_database_that_does_not_answer_is_said(
    console: AsgiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise sa.exc.OperationalError("SELECT secret", {}, OSError("connection refused"))

    monkeypatch.setattr(sessions, "get", away)
    answer = console.get("/sessions/latest")
    assert answer.status_code == 503
    assert "the job database does not answer (connection refused)" in answer.text
    assert "secret" not in answer.text
