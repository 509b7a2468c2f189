"""The console in a real browser: pages refresh themselves, nothing is refused by its own policy."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright

from backup_server.db.states import Result, SessionState, change_state
from backup_server.db.tables import Event, Session, Task
from backup_server.main import create_app
from backup_server.services import jobs, sessions
from backup_server.services.context import Context
from tests.support.history import RUNNING, Clock, make_context, seed
from transports.vsphere.model import Secret

pytestmark = pytest.mark.browser

TOKEN = "the-token-of-this-server"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def ctx(tmp_path: Path) -> Iterator[Context]:
    context = make_context(tmp_path / "data", Clock())
    seed(context)
    yield context
    context.close()


@pytest.fixture
def url(ctx: Context) -> Iterator[str]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()  # or whoever comes before the server's thread does is refused
    config = uvicorn.Config(create_app(ctx, Secret(TOKEN)), log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """Logged in; what the browser complains of fails the test."""
    complaints: list[str] = []
    with contextlib.closing(
        browser.new_context(locale="en-GB", timezone_id="Europe/Berlin")
    ) as context:
        opened = context.new_page()
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on(
            "console",
            lambda line: complaints.append(line.text) if line.type in {"error", "warning"} else None,
        )
        opened.goto(url)
        opened.fill("#token", TOKEN)
        opened.click("main button")
        expect(opened.get_by_role("heading", name="Jobs")).to_be_visible()
        yield opened
        assert complaints == []


def test_every_page_without_a_complaint(page: Page, url: str) -> None:
    for name in ("Jobs", "Sessions", "Restore points", "Proxies", "Repositories", "Overview"):
        page.get_by_role("navigation").get_by_role("link", name=name).click()
        link = page.get_by_role("navigation").get_by_role("link", name=name)
        expect(link).to_have_attribute("aria-current", "page")
    page.goto(f"{url}/restore-points")
    page.get_by_role("link", name="db01").click()
    expect(page.get_by_text("vmhaul restore vm")).to_be_visible()


def test_another_retention_is_shown_and_nothing_changed(page: Page, url: str, ctx: Context) -> None:
    page.goto(f"{url}/jobs/job-1/retention")
    expect(page.get_by_text("The job's own rule")).to_be_visible()
    page.get_by_label("weekly").fill("5")
    page.get_by_role("button", name="Show what it would do").click()
    expect(page.get_by_text("nothing is changed")).to_be_visible()
    expect(page.get_by_text("--weekly 5")).to_be_visible()
    expect(page.get_by_text("weekly 20", exact=False).first).to_be_visible()
    assert "weekly" not in jobs.get(ctx, "job-1")["retention"]


def test_times_are_the_reader_s(page: Page, url: str) -> None:
    page.goto(f"{url}/sessions/{RUNNING}")
    expect(page.locator(".events time").first).to_have_text("03:30:00")


def test_a_running_session_is_seen_to_end(page: Page, url: str, ctx: Context) -> None:
    page.goto(f"{url}/sessions/{RUNNING}")
    bar = page.locator("table progress").first
    expect(bar).to_have_attribute("value", "75")
    with ctx.db() as s:
        task = s.get_one(Task, "task-run-1")
        task.progress = {**task.progress, "done_bytes": task.progress["total_bytes"]}
        s.add(
            Event(session_id=RUNNING, at=ctx.clock(), level="info", name="x", text="the disk is whole")
        )
    expect(bar).to_have_attribute("value", "100")
    expect(page.get_by_text("the disk is whole")).to_be_visible()
    with ctx.db() as s:
        change_state(
            s,
            Session,
            RUNNING,
            SessionState.RUNNING,
            SessionState.FINISHED,
            result=Result.SUCCESS.value,
            finished_at=ctx.clock(),
        )
    expect(page.locator("h1 .badge")).to_have_text("success")
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)


def test_cancelling_asks_first(page: Page, url: str, ctx: Context) -> None:
    page.goto(f"{url}/sessions/{RUNNING}")
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.get_by_role("button", name="Cancel").click()
    assert sessions.get(ctx, RUNNING)["cancel_requested"] is False
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("being cancelled")).to_be_visible()
    assert sessions.get(ctx, RUNNING)["cancel_requested"] is True


def test_a_page_fits_a_narrow_window(page: Page, url: str) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    for path in (
        "/",
        f"/sessions/{RUNNING}",
        "/jobs",
        "/jobs/job-1/retention",
        "/repositories",
        "/restore-points",
    ):
        page.goto(url + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
