"""What a proxy's machine holds while it works: nowhere the password of the database or of a vCenter."""

from __future__ import annotations

import base64
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
from vmhaul_lab.site import LabSite

from .platform import VMHAUL, Platform, wait_until
from .setup import REPOSITORY_PASSWORD, connect

pytestmark = [pytest.mark.lab, pytest.mark.postgres]

DATABASE = "VMHAUL_DATABASE"
MOVER = b"proxy_worker.mover_process"
MOST_BACKUPS = 5


def spellings(secret: str) -> tuple[bytes, ...]:
    """How it may be written down; of base64 what does not depend on what follows."""
    raw = secret.encode()
    whole = len(raw) // 3 * 3
    return (
        raw,
        quote(secret, safe="").encode(),
        raw.hex().encode(),
        base64.b64encode(raw[:whole]),
        base64.urlsafe_b64encode(raw[:whole]),
    )


@dataclass(kw_only=True)
class Searcher:
    """Looks for secrets in what a process was given and in files."""

    secrets: dict[str, str]
    """By what they are."""
    found: set[str] = field(default_factory=set)
    processes: set[int] = field(default_factory=set)
    movers: set[int] = field(default_factory=set)
    files: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """With when they were changed last, and how long they were: what is as it was is not read again."""

    def look_at(self, worker: psutil.Process, *directories: Path) -> None:
        with suppress(psutil.NoSuchProcess):
            for process in (worker, *worker.children(recursive=True)):
                self.look_at_process(process.pid)
        for directory in directories:
            for file in directory.rglob("*"):
                self.look_at_file(file)

    def look_at_process(self, pid: int) -> None:
        with suppress(OSError):  # it ended
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            self._search(line, f"command line of {line!r}")
            self._search(Path(f"/proc/{pid}/environ").read_bytes(), f"environment of {line!r}")
            self.processes.add(pid)
            if MOVER in line:
                self.movers.add(pid)

    def look_at_file(self, file: Path) -> None:
        with suppress(OSError):  # it is gone, or no plain file
            now = file.stat()
            seen = (now.st_mtime_ns, now.st_size)
            if file.is_file() and self.files.get(file) != seen:
                self._search(file.read_bytes(), str(file))
                self.files[file] = seen

    def _search(self, data: bytes, where: str) -> None:
        self.found |= {
            f"{what} in {where}"
            for what, secret in self.secrets.items()
            if any(spelling in data for spelling in spellings(secret))
        }


@contextmanager
def worker_elsewhere(product: Platform, name: str, directory: Path) -> Iterator[psutil.Process]:
    """A proxy that joined through the door; its worker as another machine would run it."""
    token = str(product.json("proxy", "add", name)["join_token"])
    product.run("proxy", "join", "--data", str(directory), "--token-stdin", stdin=token + "\n")
    environment = {key: text for key, text in os.environ.items() if key != DATABASE}
    with (directory / "worker.log").open("wb") as log:
        worker = psutil.Popen(
            [str(VMHAUL), "proxy", "run", "--data", str(directory)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
    try:
        wait_until(
            f"proxy {name} is online",
            lambda: any(
                one["name"] == name and one["state"] == "online"
                for one in product.ask("/proxies")["items"]
            ),
        )
        yield worker
    finally:
        worker.terminate()
        worker.wait(60)


def test_no_proxy_holds_the_passwords_of_database_or_vcenter(
    tmp_path: Path, site: LabSite, postgres_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_database = secrets.token_urlsafe(24)
    url = postgres_database.replace("//vmhaul@", f"//vmhaul:{of_database}@")
    assert of_database in url
    # As a service file or a container would have it; the lab's PostgreSQL takes any password.
    monkeypatch.setenv(DATABASE, url)
    door = ["--proxies-listen", "127.0.0.1:0", "--proxies-broker-port", "0"]
    product = Platform(tmp_path / "data", options=door)
    known = {
        "the database's password": of_database,
        "the vCenter's password": site.password,
        "the repository's password": REPOSITORY_PASSWORD,
    }
    try:
        product.start()
        connect(product, site, tmp_path / "repo")
        assert not (product.data / "vmhaul.db").exists()
        # The search finds what is there: the server has its settings.
        control = Searcher(secrets=known)
        for process in product.processes("backup_server.main"):
            control.look_at_process(process.pid)
        assert any(one.startswith("the database's password in environment") for one in control.found)

        [local] = product.processes("proxy_worker", "--data", "default")
        at_local = (product.data / "proxies", product.data / "log" / "proxy-default.log")
        searched(product, "default", Searcher(secrets=known), local, *at_local)
        elsewhere = tmp_path / "far"
        with worker_elsewhere(product, "far", elsewhere) as worker:
            searched(product, "far", Searcher(secrets=known), worker, elsewhere)
    finally:
        if product.process is not None:
            product.stop()


def searched(
    product: Platform, proxy: str, search: Searcher, worker: psutil.Process, *places: Path
) -> None:
    """Back up by that proxy, and look all the time until a mover was seen and has ended."""
    product.run(
        "job", "create", f"by-{proxy}", "--vcenter", "lab", "--repository", "main", "--vm", "vm01", "--proxy", proxy,
    )  # fmt: skip
    directories = [place for place in places if place.is_dir()]
    for _ in range(MOST_BACKUPS):
        session_id = product.start_job(f"by-{proxy}")

        def ended(session_id: str = session_id) -> bool:
            search.look_at(worker, *directories)
            return bool(product.session(session_id)["state"] == "finished")

        wait_until(f"the backup by {proxy} ends", ended, 120, 0.1)
        session = product.session(session_id)
        assert session["result"] == "success", session
        assert {task["proxy"] for vm in session["vms"] for task in vm["tasks"]} == {proxy}
        if search.movers:
            break
    for place in places:
        search.look_at_file(place)
    assert search.movers
    assert search.files
    assert search.found == set()
