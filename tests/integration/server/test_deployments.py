"""Proxies installed, upgraded and removed: what the server remembers, whatever fails on the machine."""

from __future__ import annotations

import itertools
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from backup_server.db.tables import Credential, ManagedServer, Proxy, Setting
from backup_server.deploy.places import Places
from backup_server.deploy.wheel import carried_wheel
from backup_server.errors import ConflictError, InvalidError, NotFoundError
from backup_server.services import deployments, jobs, managed_servers, operations, proxies
from proxy_worker.contracts.join_token import parse_join_token
from tests.fakes.machine import FakeMachine
from tests.fakes.server import HandClock, Rig, running_task
from transports.vsphere.model import Secret

PASSWORD = "ssh-password"
KEYS = {"signing_key": "ab" * 32, "sealing_key": "cd" * 32}
LOGIN: dict[str, Any] = {
    "address": "px1.example.com",
    "username": "root",
    "host_key": "SHA256:abc",
    "password": PASSWORD,
}


class Ticking(HandClock):
    """A second passes whenever it is looked at, so that what waits by it comes to its end."""

    def __call__(self) -> Any:
        self.advance(1)
        return self.now


@pytest.fixture
def rig(tmp_path: Path, migrated_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(deployments, "POLL_S", 0.01)
    rig = Rig(tmp_path, migrated_url, proxies_listen="192.0.2.1").site()
    rig.clock.__class__ = Ticking
    yield rig
    rig.close()


class Site:
    """A machine whose worker joins when it is told to, and is heard when it is started."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.machine = FakeMachine(clock="")
        self.machine.on_enrol = self.enrol
        self.machine.on_start = self.heard
        self.says_version = carried_wheel().version

    def enrol(self, text: str) -> None:
        token = parse_join_token(text)
        proxies.enrol(
            self.rig.ctx, token=Secret(text), name=token.name, version=self.says_version, **KEYS
        )

    def heard(self) -> None:
        with self.rig.ctx.db() as s:
            s.execute(
                sa.update(Proxy)
                .where(Proxy.local.is_(False))
                .values(
                    last_seen_at=self.rig.clock.now,
                    boot_id=uuid4().hex,
                    version=self.says_version,
                    connections_at=self.rig.clock.now,
                )
            )

    def end(self, operation: dict[str, Any]) -> dict[str, Any]:
        until = time.monotonic() + 60
        while operation["state"] == "running":
            assert time.monotonic() < until, operation
            time.sleep(0.01)
            operation = operations.get(self.rig.ctx, operation["id"])
        return operation

    def add(self, **changes: Any) -> dict[str, Any]:
        data = {**LOGIN, **changes}
        return self.end(deployments.start_add(self.rig.ctx, data, connect=self.machine.connected))

    def upgrade(self, **data: Any) -> dict[str, Any]:
        return self.end(deployments.start_upgrade(self.rig.ctx, data, connect=self.machine.connected))

    def remove(self, **data: Any) -> dict[str, Any]:
        return self.end(
            deployments.start_remove(self.rig.ctx, "px1", data, connect=self.machine.connected)
        )

    def make_it_older(self) -> str:
        """The machine's release counts as another one than the server's."""
        places = Places()
        self.machine.links[places.current] = "releases/0.0.1-old"
        self.machine.directories.add(places.release("0.0.1-old"))
        self.machine.files.pop(places.release(carried_wheel().release_id) + "/complete", None)
        return "0.0.1-old"


@pytest.fixture
def site(rig: Rig) -> Site:
    return Site(rig)


def test_added_and_remembered(rig: Rig, site: Site) -> None:
    done = site.add(slots=3, keep_credentials=True)
    assert done["state"] == "success", done
    assert [step["name"] for step in done["steps"]] == [
        "connect", "look", "register", "user", "directories", "environment", "settings", "enrolment", "service",
        "start", "heard",
    ]  # fmt: skip
    shown = proxies.get(rig.ctx, "px1")
    assert (shown["slots"], shown["server"], shown["enrolled"]) == (3, "px1.example.com", True)
    assert shown["operation"] is None
    server = managed_servers.get(rig.ctx, "px1.example.com")
    assert server["credentials_kept"]
    [installed] = server["proxies"]
    assert (installed["name"], installed["release"]) == ("px1", carried_wheel().release_id)
    # Sealed in one table, in the clear nowhere.
    assert PASSWORD not in json.dumps([server, done, operations.list_all(rig.ctx)])
    with rig.ctx.db.read() as s:
        texts = [row.value for row in s.scalars(sa.select(Setting))]
        sealed = s.get_one(Credential, s.scalars(sa.select(ManagedServer)).one().credential_id)
    assert not any(PASSWORD in text for text in texts)
    assert PASSWORD in rig.ctx.credentials.open(sealed.sealed).reveal()


def test_credentials_are_kept_of_a_key_and_when_it_is_asked_for(rig: Rig, site: Site) -> None:
    site.add()
    assert not managed_servers.get(rig.ctx, "px1.example.com")["credentials_kept"]
    with pytest.raises(InvalidError, match="no credentials are kept"):
        deployments.start_upgrade(rig.ctx, {"names": ["px1"]})
    assert site.upgrade(names=["px1"], password=PASSWORD)["state"] == "success"


@pytest.mark.parametrize("step", ["useradd --system", "pip install", "--join token", "systemctl start"])
def test_a_failure_leaves_nothing_on_either_side(rig: Rig, site: Site, step: str) -> None:
    before = site.machine.state
    site.machine.fails = {step: "it went wrong"}
    done = site.add(keep_credentials=True)
    assert done["state"] == "failed"
    assert "it went wrong" in done["error"]
    assert "what was done there was undone" in done["error"]
    assert site.machine.state == before
    assert managed_servers.list_all(rig.ctx) == []
    assert [one["name"] for one in proxies.list_all(rig.ctx)] == ["default"]
    with rig.ctx.db.read() as s:
        kinds = set(s.scalars(sa.select(Credential.kind)))
    assert "managed-server" not in kinds
    site.machine.fails = {}
    assert site.add()["state"] == "success"


def test_a_worker_that_is_not_heard_is_taken_away_again(rig: Rig, site: Site) -> None:
    site.machine.on_start = lambda: None
    site.machine.log = "starting\nthe broker at 192.0.2.1:6380 does not answer\n"
    before = site.machine.state
    done = site.add()
    assert "did not hear its heartbeat" in done["error"]
    # Afterwards the log is gone with the rest.
    assert "its log ends: starting / the broker at 192.0.2.1:6380 does not answer" in done["error"]
    assert site.machine.state == before
    with pytest.raises(NotFoundError):
        proxies.get(rig.ctx, "px1")


def test_what_cannot_be_is_refused_before_anything_begins(rig: Rig, site: Site) -> None:
    site.machine.look["free"] = "1024 /opt"
    assert "only 1 MiB are free" in site.add()["error"]
    site.machine.look["free"] = "10485760 /opt"
    del site.machine.look["python"]
    assert "lacks python3, python3-venv" in site.add()["error"]
    with pytest.raises(ConflictError, match="exists already"):
        site.add(name="default")
    with pytest.raises(InvalidError) as caught:
        site.add(host_key="abc", name="a b", places={"install_dir": "/"}, nothing=1)
    assert set(caught.value.details) == {"host_key", "name", "places", "nothing"}
    with pytest.raises(InvalidError, match="give a password"):
        site.add(password=None)


def test_without_a_door_no_machine_is_touched(tmp_path: Path, migrated_url: str) -> None:
    rig = Rig(tmp_path, migrated_url).site()
    try:
        with pytest.raises(ConflictError, match="--proxies-listen"):
            deployments.start_add(rig.ctx, LOGIN)
    finally:
        rig.close()


def test_one_operation_at_a_time_on_a_machine(rig: Rig, site: Site) -> None:
    with rig.ctx.db() as s:
        s.add(Setting(name=f"operating/machine/{LOGIN['host_key']}", value="another"))
    # By whatever name or address it is reached: it is known by its host key.
    for address in ("px1.example.com", "192.0.2.7"):
        with pytest.raises(ConflictError, match="another operation works on machine/SHA256:"):
            site.add(address=address)
    assert operations.list_all(rig.ctx) == []
    with rig.ctx.db.read() as s:
        locks = s.scalars(sa.select(Setting.value).where(Setting.name.startswith("operating/"))).all()
    assert locks == ["another"]


def test_upgraded_in_peace(rig: Rig, site: Site) -> None:
    site.add(keep_credentials=True)
    old = site.make_it_older()
    order: list[str] = []
    site.machine.on_start = lambda: (order.append("start"), site.heard())[0]
    done = site.upgrade(all=True)
    assert done["state"] == "success", done
    assert done["result"] == {"upgraded": {"px1": carried_wheel().release_id}}
    assert [step["name"] for step in done["steps"]] == [
        "environment", "drain", "switch", "heard", "done",
    ]  # fmt: skip
    assert proxies.get(rig.ctx, "px1")["enabled"]
    assert site.machine.has(Places().release(old))
    again = site.upgrade(names=["px1"])
    assert [step["name"] for step in again["steps"]] == ["current"]
    assert order == ["start"]


def _away(times: int, then: Callable[..., Any]) -> Callable[..., Any]:
    """The database does not answer so often, and does then."""
    left = itertools.chain(range(times), itertools.repeat(None))

    def ask(*words: Any) -> Any:
        if next(left) is not None:
            raise sa.exc.OperationalError("SELECT 1", {}, OSError("it is started anew"))
        return then(*words)

    return ask


def test_an_upgrade_outlives_a_database_that_starts_anew(
    rig: Rig, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it waits until nothing runs, which may take a day, and when its end is written."""
    site.add(keep_credentials=True)
    site.make_it_older()
    monkeypatch.setattr(operations, "DATABASE_RETRY_S", 0.01)
    monkeypatch.setattr(proxies, "running_on", _away(5, proxies.running_on))
    monkeypatch.setattr(operations, "_end", _away(3, operations._end))
    done = site.upgrade(all=True)
    assert done["state"] == "success", done
    with rig.ctx.db.read() as s:
        assert (
            s.scalars(sa.select(Setting.name).where(Setting.name.startswith("operating/"))).all() == []
        )


def test_that_the_database_was_away_is_no_defect(
    rig: Rig, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add(keep_credentials=True)
    site.make_it_older()
    monkeypatch.setattr(managed_servers, "installed", _away(1, managed_servers.installed))
    assert "the job database did not answer (it is started anew)" in site.upgrade(all=True)["error"]
    assert site.upgrade(all=True)["state"] == "success"


def test_a_disabled_proxy_stays_disabled(rig: Rig, site: Site) -> None:
    site.add(keep_credentials=True)
    proxies.edit(rig.ctx, "px1", {"enabled": False})
    site.make_it_older()
    assert site.upgrade(all=True)["state"] == "success"
    assert not proxies.get(rig.ctx, "px1")["enabled"]


def test_an_upgrade_waits_for_what_runs(rig: Rig, site: Site) -> None:
    site.add(keep_credentials=True)
    old = site.make_it_older()
    task = running_task(rig)
    with rig.ctx.db() as s:
        proxy = s.scalars(sa.select(Proxy).where(Proxy.name == "px1")).one()
        s.execute(
            sa.text("UPDATE tasks SET proxy_id = :p WHERE id = :t"), {"p": proxy.id, "t": task.id}
        )
    done = site.upgrade(all=True, drain_timeout_s=20)
    assert "1 tasks still run on it after 20 s" in done["error"]
    assert site.machine.links[Places().current] == f"releases/{old}"
    assert proxies.get(rig.ctx, "px1")["enabled"]


@pytest.mark.parametrize("failure", ["not heard", "another release", "does not start"])
def test_the_old_release_comes_back(rig: Rig, site: Site, failure: str) -> None:
    site.add(keep_credentials=True)
    old = site.make_it_older()
    current = Places().current

    def start() -> None:
        new = not site.machine.links[current].endswith(old)
        if failure == "not heard" and new:
            return
        site.says_version = "0.0.1" if failure == "another release" or not new else "9.9"
        site.heard()

    site.machine.on_start = start
    if failure == "does not start":
        fails = site.machine.fails
        fails["systemctl start"] = "exec format error"
        site.machine.on_start = site.heard
        run = site.machine.run

        def heal(words: Any, **more: Any) -> Any:
            if "ln -sfn" in " ".join(words) and old in " ".join(words):
                fails.clear()
            return run(words, **more)

        site.machine.run = heal  # type: ignore[method-assign]
    done = site.upgrade(all=True)
    assert done["state"] == "failed"
    assert f"it runs its old release {old} again" in done["error"]
    assert site.machine.links[current] == f"releases/{old}"
    assert site.machine.running
    assert proxies.get(rig.ctx, "px1")["enabled"]


def test_that_no_release_comes_up_is_said_of_both(
    rig: Rig, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployments, "HEARD_S", 10.0)
    site.add(keep_credentials=True)
    old = site.make_it_older()
    site.machine.on_start = lambda: None
    done = site.upgrade(all=True)
    assert done["state"] == "failed"
    assert f"its old release {old} did not come back either: the server did not hear" in done["error"]
    assert "then upgrade it again" in done["error"]


def test_local_and_strange_proxies_are_not_upgraded(rig: Rig, site: Site) -> None:
    with pytest.raises(ConflictError, match="installed no proxy"):
        site.upgrade(all=True)
    with pytest.raises(ConflictError, match="runs on the server's machine"):
        site.upgrade(names=["default"])
    proxies.add(rig.ctx, name="far")
    with pytest.raises(ConflictError, match="upgrade-here"):
        site.upgrade(names=["far"])
    with pytest.raises(InvalidError, match="name the proxies"):
        site.upgrade()


def test_removed_and_its_server_kept(rig: Rig, site: Site) -> None:
    before = site.machine.state
    site.add(keep_credentials=True)
    with pytest.raises(ConflictError, match="is installed on server"):
        managed_servers.remove(rig.ctx, "px1.example.com")
    done = site.remove()
    assert done["state"] == "success", done
    assert site.machine.state == before
    server = managed_servers.get(rig.ctx, "px1.example.com")
    assert (server["proxies"], server["credentials_kept"]) == ([], True)
    # Known already: its credentials serve for the next one.
    again = deployments.start_add(
        rig.ctx, {"server": "px1.example.com", "name": "px1"}, connect=site.machine.connected
    )
    assert site.end(again)["state"] == "success"
    site.remove()
    managed_servers.remove(rig.ctx, "px1.example.com")
    with rig.ctx.db.read() as s:
        assert "managed-server" not in set(s.scalars(sa.select(Credential.kind)))


def test_a_removal_that_fails_says_what_the_proxy_is_now(rig: Rig, site: Site) -> None:
    site.add(keep_credentials=True)
    site.machine.fails = {"systemctl stop": "it does not stop"}
    done = site.remove()
    assert done["state"] == "failed"
    assert "it does not stop; proxy 'px1' is still there and gets no tasks" in done["error"]
    assert "vmhaul proxy enable px1" in done["error"]
    assert not proxies.get(rig.ctx, "px1")["enabled"]
    site.machine.fails = {}
    assert site.remove()["state"] == "success"


def test_not_removed_while_a_job_names_it(rig: Rig, site: Site) -> None:
    site.add(keep_credentials=True)
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    jobs.edit(rig.ctx, "job1", {"proxies": ["px1"]})
    with pytest.raises(ConflictError, match="named by job 'job1'"):
        site.remove(force=True)
    assert proxies.get(rig.ctx, "px1")["enabled"]


def test_a_dead_machine_does_not_keep_its_proxy(rig: Rig, site: Site) -> None:
    site.add()
    with pytest.raises(InvalidError, match="no credentials are kept"):
        site.remove()
    done = site.remove(force=True)
    assert done["state"] == "success"
    assert "no credentials are kept" in done["result"]["left_on_machine"]
    with pytest.raises(NotFoundError):
        proxies.get(rig.ctx, "px1")
    assert site.machine.running


def test_an_upgrade_that_the_servers_end_cut_off(
    rig: Rig, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add(keep_credentials=True)
    proxy_id = proxies.edit(rig.ctx, "px1", {"enabled": False})["id"]
    row = {
        "id": "op-1", "kind": "upgrade", "target": "px1", "state": "running", "steps": [], "error": "", "result": {},
        "owner": operations._owner(rig.ctx), "created_at": "2026-03-02T20:00:00Z", "finished_at": None,
        "facts": {"disabled": proxy_id},
    }  # fmt: skip
    other = {**row, "id": "op-2", "owner": "elsewhere:/data"}
    # A container has another host name each time it is made.
    monkeypatch.setattr(socket, "gethostname", lambda: "made-anew")
    with rig.ctx.db() as s:
        s.add(Setting(name="operation/op-1", value=json.dumps(row)))
        s.add(Setting(name="operation/op-2", value=json.dumps(other)))
        s.add(Setting(name=f"operating/proxy/{proxy_id}", value="op-1"))
    rig.restart()
    assert proxies.get(rig.ctx, "px1")["enabled"]
    ended = operations.get(rig.ctx, "op-1")
    assert (ended["state"], "the server ended in the middle" in ended["error"]) == ("failed", True)
    # Another server's goes on.
    assert operations.get(rig.ctx, "op-2")["state"] == "running"
    site.make_it_older()
    assert site.upgrade(all=True)["state"] == "success"


def test_an_installation_that_the_servers_end_cut_off(rig: Rig, site: Site) -> None:
    """What the message says is the way on: adding again alone would be refused."""
    site.add(keep_credentials=True)
    row = {
        "id": "op-1", "kind": "add", "target": "px1", "state": "running", "steps": [], "error": "", "result": {},
        "owner": operations._owner(rig.ctx), "created_at": "2026-03-02T20:00:00Z", "finished_at": None, "facts": {},
    }  # fmt: skip
    with rig.ctx.db() as s:
        s.add(Setting(name="operation/op-1", value=json.dumps(row)))
        s.add(Setting(name="operating/proxy-name/px1", value="op-1"))
    rig.restart()
    assert "`vmhaul proxy remove px1`, and add it again" in operations.get(rig.ctx, "op-1")["error"]
    with pytest.raises(ConflictError, match="exists already"):
        site.add()
    assert site.remove()["state"] == "success"
    assert site.add()["state"] == "success"


def test_an_upgrade_that_was_cut_off_before_the_start(rig: Rig, site: Site) -> None:
    """Said once more it must not call that done: the release is there, and nothing runs."""
    site.add(keep_credentials=True)
    site.machine.running = False
    known = {
        "places": Places().values(),
        "init": "systemd",
        "release": "old",
        "extras": [],
        "python": "p",
    }
    with rig.ctx.db() as s:
        [server] = s.scalars(sa.select(ManagedServer))
        managed_servers.set_installed(s, server.id, proxies.get(rig.ctx, "px1")["id"], known)
    assert site.upgrade(all=True)["state"] == "success"
    assert site.machine.running
    [shown] = managed_servers.list_all(rig.ctx)
    assert shown["proxies"][0]["release"] == carried_wheel().release_id
