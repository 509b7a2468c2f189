"""Proxies on Windows through a played WinRM endpoint: TLS, NTLM, WS-Management and PSRP are real, the machine is not."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

import backup_server.deploy.windows
from backup_server.db.tables import ManagedServer, Proxy, Setting
from backup_server.deploy.wheel import Wheel
from backup_server.deploy.windows.steps import PART_BYTES
from backup_server.errors import ConflictError, InvalidError
from backup_server.services import deployments, managed_servers, operations, proxies
from proxy_worker.config import installed_version
from proxy_worker.contracts.join_token import parse_join_token
from tests.fakes.server import HandClock, Rig
from tests.support.certificates import make_certificate
from tests.support.played_windows import PlayedWindows
from tests.support.winrm_endpoint import Endpoint, serving
from transports.vsphere.model import Secret

USER = "backup"
PASSWORD = "Winter-Is-Long-7"
KEYS = {"signing_key": "ab" * 32, "sealing_key": "cd" * 32}
SCRIPTS = Path(backup_server.deploy.windows.__file__).parent / "scripts"
WHEEL = Wheel(
    name=f"vmhaul-{installed_version()}-py3-none-any.whl",
    version=installed_version(),
    content=bytes(range(256)) * (PART_BYTES // 256) + b"the end",
    extras=frozenset({"deploy"}),
)
"""In two parts."""
RELEASES = "C:\\Program Files\\vmhaul\\releases"


class Ticking(HandClock):
    """Time passes whenever it is looked at, so that what waits by it comes to its end."""

    def __call__(self) -> Any:
        self.advance(1)
        return self.now


class Site:
    def __init__(self, rig: Rig, endpoint: Endpoint, windows: PlayedWindows, port: int) -> None:
        self.rig, self.endpoint, self.windows = rig, endpoint, windows
        windows.on_enrol, windows.on_start = self.enrol, self.heard
        self.version = WHEEL.version
        self.login: dict[str, Any] = {
            "kind": "windows",
            "address": "127.0.0.1",
            "port": port,
            "username": USER,
            "password": PASSWORD,
            "host_key": managed_servers.probe("127.0.0.1", port, "windows")["host_key"],
            "name": "win1",
        }

    def enrol(self, text: str) -> None:
        name = parse_join_token(text).name
        proxies.enrol(self.rig.ctx, token=Secret(text), name=name, version=self.version, **KEYS)

    def heard(self) -> None:
        now = self.rig.clock.now
        found = {
            "last_seen_at": now,
            "boot_id": uuid4().hex,
            "version": self.version,
            "connections_at": now,
        }
        with self.rig.ctx.db() as s:
            s.execute(sa.update(Proxy).where(Proxy.local.is_(False)).values(**found))

    def end(self, operation: dict[str, Any]) -> dict[str, Any]:
        until = time.monotonic() + 60
        while operation["state"] == "running":
            assert time.monotonic() < until, operation
            time.sleep(0.01)
            operation = operations.get(self.rig.ctx, operation["id"])
        return operation

    def add(self, **changes: Any) -> dict[str, Any]:
        return self.end(deployments.start_add(self.rig.ctx, {**self.login, **changes}))

    def nothing_is_left(self) -> None:
        assert self.windows.state == {"files": {}, "directories": set(), "tasks": {}}
        with self.rig.ctx.db.read() as s:
            assert s.scalar(sa.select(Proxy.id).where(Proxy.name == "win1")) is None
            assert s.scalar(sa.select(ManagedServer.id)) is None


@pytest.fixture
def site(tmp_path: Path, sqlite_template: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    database = tmp_path / "jobs.db"
    shutil.copyfile(sqlite_template, database)
    users = tmp_path / "users"
    users.write_text(f":{USER}:{PASSWORD}\n")
    monkeypatch.setenv("NTLM_USER_FILE", str(users))
    monkeypatch.setattr(deployments, "POLL_S", 0.01)
    monkeypatch.setattr(deployments, "carried_wheel", lambda: WHEEL)
    rig = Rig(tmp_path, f"sqlite:///{database}", proxies_listen="192.0.2.1").site()
    rig.clock.__class__ = Ticking
    windows = PlayedWindows(lambda: int(rig.clock.now.timestamp() * 1000))
    endpoint = Endpoint(windows.run, SCRIPTS)
    with serving(endpoint, make_certificate(tmp_path / "winrm.pem")) as port:
        yield Site(rig, endpoint, windows, port)
    rig.close()
    assert endpoint.defects == []


def test_added_upgraded_and_removed(site: Site) -> None:
    done = site.add(keep_credentials=True)
    assert done["state"] == "success", done
    assert [step["name"] for step in done["steps"]] == [
        "connect", "look", "register", "directories", "environment", "settings", "enrolment", "service", "start", "heard",
    ]  # fmt: skip
    windows, wheel = site.windows, WHEEL
    release = f"{RELEASES}\\{wheel.release_id}"
    assert windows.files[f"{release}\\{wheel.name}"] == wheel.content
    assert windows.tasks["vmhaul-proxy"] == {
        "program": f"{release}\\venv\\Scripts\\python.exe",
        "running": True,
    }
    server = managed_servers.get(site.rig.ctx, "127.0.0.1")
    assert (server["kind"], server["credentials_kept"]) == ("windows", True)
    assert server["facts"]["system"] == "Microsoft Windows Server 2022 Standard"
    assert server["proxies"][0]["places"]["data_dir"] == "C:\\ProgramData\\vmhaul-proxy"
    assert not site.endpoint.pools

    windows.tasks["vmhaul-proxy"]["program"] = f"{RELEASES}\\0.0.1-old\\venv\\Scripts\\python.exe"
    windows._directory(f"{RELEASES}\\0.0.1-old")
    windows._directory(f"{RELEASES}\\0.0.0-older")
    del windows.files[f"{release}\\complete"]
    done = site.end(deployments.start_upgrade(site.rig.ctx, {"names": ["win1"]}))
    assert done["result"] == {"upgraded": {"win1": wheel.release_id}}, done
    assert windows.tasks["vmhaul-proxy"]["program"] == f"{release}\\venv\\Scripts\\python.exe"
    assert {one for one in windows.directories if one.count("\\") == 4} == {
        release,
        f"{RELEASES}\\0.0.1-old",
    }

    done = site.end(deployments.start_remove(site.rig.ctx, "win1", {}))
    assert done["state"] == "success", done
    assert windows.state == {"files": {}, "directories": set(), "tasks": {}}


def test_a_release_that_is_not_heard_gives_way_to_the_old_one(site: Site) -> None:
    assert site.add(keep_credentials=True)["state"] == "success"
    old = f"{RELEASES}\\0.0.1-old\\venv\\Scripts\\python.exe"
    site.windows.tasks["vmhaul-proxy"]["program"] = old
    heard = site.windows.on_start

    def only_the_old() -> None:
        if site.windows.tasks["vmhaul-proxy"]["program"] == old:
            heard()

    site.windows.on_start = only_the_old
    done = site.end(deployments.start_upgrade(site.rig.ctx, {"names": ["win1"]}))
    assert (done["state"], "runs its old release" in done["error"]) == ("failed", True), done
    assert site.windows.tasks["vmhaul-proxy"] == {"program": old, "running": True}


def test_secrets_are_nowhere(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    done = site.add(keep_credentials=True)
    assert done["state"] == "success", done
    [token] = site.windows.standard_inputs
    with site.rig.ctx.db.read() as s:
        kept = [row.value for row in s.scalars(sa.select(Setting))]
    shown = json.dumps([done, kept, managed_servers.list_all(site.rig.ctx)])
    for secret in (PASSWORD, token):
        assert secret not in shown
        # psrpcore is the machine's side here.
        ours = [one.getMessage() for one in caplog.records if not one.name.startswith("psrpcore")]
        assert not any(secret in text for text in ours)
        assert not any(secret in text for text in site.endpoint.texts)
        assert not any(secret in word for words in site.windows.programs for word in words)
    # NTLM proves the password and never sends it.
    assert not any(PASSWORD.encode() in body for body in site.endpoint.bodies)


def test_another_certificate_gets_nothing(site: Site) -> None:
    done = site.add(host_key="AB" * 32)
    assert done["state"] == "failed"
    assert "nothing was sent" in done["error"]
    assert (site.endpoint.bodies, site.endpoint.logons) == ([], 0)
    site.nothing_is_left()


def test_a_login_that_is_refused(site: Site) -> None:
    done = site.add(password="another")
    assert done["state"] == "failed"
    assert f"refused the login of {USER}" in done["error"]
    look = {name: value for name, value in site.login.items() if name != "name"}
    with pytest.raises(InvalidError, match="refused the login"):
        managed_servers.look_at(site.rig.ctx, {**look, "password": "another"})
    assert site.endpoint.texts == []
    site.nothing_is_left()


@pytest.mark.parametrize(
    ("python", "says"),
    [
        ("", "no Python 3.11 or newer is found"),
        ("C:\\Users\\admin\\AppData\\Local\\Programs\\Python\\python.exe", "for all users"),
    ],
)
def test_without_a_python_nothing_is_begun(site: Site, python: str, says: str) -> None:
    site.windows.python = python
    done = site.add()
    assert says in done["error"], done
    assert site.windows.calls == ["look"]
    site.nothing_is_left()


def test_a_full_disk_is_told_and_undone(site: Site) -> None:
    look, site.windows.free_bytes = site.windows._look, 1 << 16

    def roomy(**given: str) -> list[str]:
        return [f"free={1 << 40}" if line.startswith("free") else line for line in look(**given)]

    site.windows._look = roomy  # type: ignore[method-assign]
    done = site.add()
    assert done["state"] == "failed"
    assert "not enough space on the disk" in done["error"]
    assert "what was done there was undone" in done["error"]
    site.nothing_is_left()


@pytest.mark.parametrize("script", ["environment", "register"])
def test_a_connection_that_is_cut_is_opened_again_to_undo(site: Site, script: str) -> None:
    site.endpoint.cut_at = script
    done = site.add()
    assert done["state"] == "failed"
    assert "did not answer over WinRM" in done["error"]
    assert "what was done there was undone" in done["error"], done
    assert site.endpoint.logons == 2
    site.nothing_is_left()


@pytest.mark.parametrize("script", ["closed_directory", "packages", "start"])
def test_a_step_that_fails_leaves_nothing(site: Site, script: str) -> None:
    site.windows.fails[script] = "it went \u202ewrong"
    done = site.add()
    assert done["state"] == "failed"
    assert "it went wrong" in done["error"]
    assert "\u202e" not in done["error"]
    site.nothing_is_left()


def test_what_was_there_before_stays(site: Site) -> None:
    site.windows._directory("C:\\Program Files\\vmhaul\\mine")
    site.windows.files["C:\\Program Files\\vmhaul\\mine\\notes.txt"] = b"notes"
    site.windows.fails["packages"] = "it went wrong"
    assert site.add()["state"] == "failed"
    assert site.windows.files["C:\\Program Files\\vmhaul\\mine\\notes.txt"] == b"notes"


def test_what_belongs_to_ssh_is_refused(site: Site) -> None:
    with pytest.raises(InvalidError) as refused:
        deployments.start_add(
            site.rig.ctx,
            {
                **site.login,
                "private_key": "key",
                "host_key": "SHA256:abc",
                "places": {"data_dir": "/var/lib/x"},
            },
        )
    assert set(refused.value.details) == {"private_key", "host_key", "places"}


def test_one_machine_at_a_time(site: Site) -> None:
    def second(**_: str) -> list[str]:
        with pytest.raises(ConflictError, match="another operation works"):
            deployments.start_add(site.rig.ctx, {**site.login, "name": "win2"})
        return look(**_)

    look = site.windows._look
    site.windows._look = second  # type: ignore[method-assign]
    assert site.add()["state"] == "success"
