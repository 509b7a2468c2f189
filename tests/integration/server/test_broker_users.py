"""Users of a broker that is somebody else's: as far as the server's login may manage them; and revocation."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from backup_server.credentials import token_hash
from backup_server.db.states import TaskState
from backup_server.db.tables import Credential, Event, Proxy, Task, new_id
from backup_server.errors import ConflictError
from backup_server.services import broker_users, doctor, proxies
from backup_server.services.broker_users import BrokerUsers
from backup_server.services.proxy_settings import ENROLLED_AS
from proxy_worker.contracts.ids import ProxyId
from proxy_worker.contracts.names import task_queue
from tests.fakes.server import Rig, running_task
from tests.support.ports import free_port
from transports.vsphere.model import Secret

PASSWORD = "of-the-broker"
KEYS = {"signing_key": "ab" * 32, "sealing_key": "cd" * 32}


@dataclass(frozen=True, kw_only=True)
class Outside:
    """A Redis that vmhaul did not start."""

    port: int

    def url(self, user: str = "", password: str = PASSWORD) -> str:
        return f"redis://{user}:{password}@127.0.0.1:{self.port}/0"

    def client(self, url: str = "") -> redis.Redis:
        client: redis.Redis = redis.Redis.from_url(url or self.url(), decode_responses=True)
        return client


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    port = free_port()
    program = shutil.which("redis-server")
    assert program
    server = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--requirepass", PASSWORD, "--save", ""],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
    )
    made = Outside(port=port)
    try:
        _wait_until_it_answers(made)
        yield made
    finally:
        server.terminate()
        server.wait(20)


def _wait_until_it_answers(outside: Outside) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            with outside.client() as client:
                client.ping()
        except redis.ConnectionError:
            assert time.monotonic() < until
            time.sleep(0.05)
        else:
            return


@pytest.fixture
def rigs(tmp_path: Path, sqlite_template: Path) -> Iterator[Any]:
    made: list[Rig] = []

    def make(broker: str) -> Rig:
        file = tmp_path / "jobs.db"
        if not file.exists():
            shutil.copyfile(sqlite_template, file)
        made.append(Rig(tmp_path, f"sqlite:///{file}", broker=broker))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


def taken_in(rig: Rig, name: str) -> Proxy:
    token = Secret(proxies.add(rig.ctx, name=name)["join_token"])
    proxy_id = proxies.enrol(rig.ctx, token=token, name=name, version="1", **KEYS)
    return rig.rows(Proxy, id=proxy_id)[0]


def users_of(outside: Outside) -> set[str]:
    with outside.client() as client:
        answer: Any = client.acl_users()
    return {name for name in answer if name.startswith("vmhaul-")}


def access(rig: Rig, row: Proxy) -> str:
    with rig.ctx.db.read() as s:
        return broker_users.access_of(rig.ctx, s, s.get_one(Proxy, row.id), "backup.example").url


def doctor_says(rig: Rig) -> str:
    return "\n".join(
        f"{check['level']} {check['name']}: {check['text']}"
        for check in doctor.run_checks(rig.ctx)
        if check["name"].startswith("broker")
    )


def test_the_servers_login_manages_users(outside: Outside, rigs: Any) -> None:
    rig = rigs(outside.url())
    broker_users.ensure_passwords(rig.ctx)
    a, b = taken_in(rig, "a"), taken_in(rig, "b")
    both = {f"vmhaul-px-{a.id}", f"vmhaul-px-{b.id}"}
    assert users_of(outside) == {*both, "vmhaul-flower"}
    assert PASSWORD not in access(rig, a)
    with outside.client(access(rig, a)) as client:
        client.xadd(f"vmhaul:up:{a.id}", {"m": "x"})
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.xadd(f"vmhaul:up:{b.id}", {"m": "x"})
        # The broker starts anew and has forgotten its users: they are written again.
        with outside.client() as admin:
            admin.acl_deluser(*both)
            keeper = BrokerUsers(rig.ctx)
            keeper.apply()
        assert both <= users_of(outside)
        # A new token ends the connection and the password of the time before.
        old = access(rig, a)
        proxies.new_token(rig.ctx, "a")
        with pytest.raises(redis.exceptions.ConnectionError):
            client.xadd(f"vmhaul:up:{a.id}", {"m": "x"})
    assert users_of(outside) == {f"vmhaul-px-{b.id}", "vmhaul-flower"}
    with outside.client(old) as client, pytest.raises(redis.exceptions.AuthenticationError):
        client.ping()
    proxies.remove(rig.ctx, "b")
    assert users_of(outside) == {"vmhaul-flower"}
    with rig.ctx.db.read() as s:
        left = s.scalars(sa.select(Credential.id).where(Credential.kind == "broker")).all()
    assert len(left) == 1
    said = doctor_says(rig)
    assert "warning broker: the broker takes single values of any length" in said
    assert f"warning broker users: the broker refused proxies something: vmhaul-px-{a.id}" in said


def test_a_login_that_may_not_manage_users_is_shared_and_said(outside: Outside, rigs: Any) -> None:
    with outside.client() as client:
        client.execute_command(  # type: ignore[no-untyped-call]
            "ACL", "SETUSER", "poor", "on", ">poor", "~*", "&*", "+@all", "-acl"
        )
    url = outside.url("poor", "poor")
    rig = rigs(url)
    row = taken_in(rig, "a")
    assert users_of(outside) == set()
    assert access(rig, row) == url
    assert "proxies share one broker user" in doctor_says(rig)
    # Allowed later: the next look gives each its own.
    with outside.client() as client:
        client.execute_command("ACL", "SETUSER", "poor", "+acl")  # type: ignore[no-untyped-call]
    BrokerUsers(rig.ctx).apply()
    assert f"vmhaul-px-{row.id}" in users_of(outside)
    assert f"vmhaul-px-{row.id}:" in access(rig, row)


def test_a_proxy_runs_no_script_of_its_own(outside: Outside, rigs: Any) -> None:
    """One that never ends would stop the broker for all, and nobody could be revoked any more."""
    rig = rigs(outside.url())
    row = taken_in(rig, "a")
    with outside.client(access(rig, row)) as client:
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.script_load("while true do end")
        # The one that workers use, for the lock around what they restore, is there.
        lock = client.lock(f"{task_queue(ProxyId(row.id))}.unacked_mutex", timeout=30)
        assert lock.acquire(blocking=False)
        lock.release()


def test_the_servers_login_is_never_given_to_a_machine_elsewhere(outside: Outside, rigs: Any) -> None:
    """Not even when the proxy is revoked while it joins."""
    for rig in (rigs(outside.url()), rigs("")):
        row = taken_in(rig, f"a{len(rig.rows(Proxy))}")
        with rig.ctx.db() as s:
            broker_users.forget_password(rig.ctx, s, s.get_one(Proxy, row.id))
        with pytest.raises(ConflictError, match="trusted no longer"):
            access(rig, row)


def test_a_broker_that_is_away_hears_of_it_later(outside: Outside, rigs: Any) -> None:
    nowhere = f"redis://:x@127.0.0.1:{free_port()}/0"
    rig = rigs(nowhere)
    row = taken_in(rig, "a")
    assert access(rig, row) == nowhere
    rig = rigs(outside.url())
    BrokerUsers(rig.ctx).apply()
    assert f"vmhaul-px-{row.id}" in users_of(outside)


def test_revoking_takes_tasks_back_and_names_the_keys_to_change(
    tmp_path: Path, sqlite_template: Path
) -> None:
    shutil.copyfile(sqlite_template, tmp_path / "jobs.db")
    rig = Rig(tmp_path, f"sqlite:///{tmp_path / 'jobs.db'}").site()
    try:
        task = running_task(rig)
        with pytest.raises(ConflictError, match="runs on the server itself"):
            proxies.revoke(rig.ctx, "default")
        far = taken_in(rig, "far")
        with rig.ctx.db() as s:
            s.execute(sa.update(Task).values(proxy_id=far.id))
        answer = proxies.revoke(rig.ctx, "far")
        [repository] = answer["repositories_to_rotate"]
        assert (answer["enrolled"], answer["running"]) == (False, 0)
        [row] = rig.rows(Task, id=task.id)
        assert (row.state, row.failures) == (TaskState.PENDING.value, 1)
        assert "trusted no longer" in row.reason
        [said] = [event.text for event in rig.rows(Event) if event.name == "proxy.revoked"]
        assert f"keys of {repository}" in said
        [shown] = [one for one in proxies.list_all(rig.ctx) if one["name"] == "far"]
        assert not shown["enrolled"]
        assert "join_token" in proxies.new_token(rig.ctx, "far")
    finally:
        rig.close()


def test_an_older_release_does_not_join(rigs: Any) -> None:
    rig = rigs("")
    token = Secret(proxies.add(rig.ctx, name="old")["join_token"])
    with pytest.raises(ConflictError, match=r"release 0\.1\.9"):
        proxies.enrol(rig.ctx, token=token, name="old", version="0.1.9", **KEYS)
    # The token is not spent by that.
    proxies.enrol(rig.ctx, token=token, name="old", version="unknown", **KEYS)


def test_a_proxy_that_is_renamed_keeps_its_mailbox_until_it_joins_again(
    outside: Outside, rigs: Any
) -> None:
    rig = rigs(outside.url())
    broker_users.ensure_passwords(rig.ctx)
    row = taken_in(rig, "a")
    for name in ("moved", "moved-again"):
        assert (
            proxies.edit(rig.ctx, "a" if name == "moved" else "moved", {"name": name})["name"] == name
        )
    with outside.client() as admin:
        admin.acl_deluser(f"vmhaul-px-{row.id}")
    BrokerUsers(rig.ctx).apply()
    with outside.client(access(rig, row)) as client:
        assert client.llen("a@vmhaul.celery.pidbox") == 0
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.llen("moved-again@vmhaul.celery.pidbox")
    token = Secret(proxies.new_token(rig.ctx, "moved-again")["join_token"])
    proxies.enrol(rig.ctx, token=token, name="moved-again", version="1", **KEYS)
    with outside.client(access(rig, row)) as client:
        assert client.llen("moved-again@vmhaul.celery.pidbox") == 0


def test_no_two_workers_go_by_one_name(rigs: Any) -> None:
    """Their mailboxes would be one: each could read what is for the other, and be cut off for what the other wrote."""
    rig = rigs("")
    first = taken_in(rig, "a")
    proxies.edit(rig.ctx, "a", {"name": "moved"})
    with pytest.raises(ConflictError, match="worker of proxy 'moved' still goes by the name 'a'"):
        proxies.add(rig.ctx, name="a")
    other = taken_in(rig, "b")
    with pytest.raises(ConflictError, match="vmhaul proxy token moved"):
        proxies.edit(rig.ctx, "b", {"name": "a"})
    assert {mailbox(rig, first), mailbox(rig, other)} == {"a", "b"}
    # Back to where it was, and on; a name that nobody goes by any more is free.
    proxies.edit(rig.ctx, "moved", {"name": "a"})
    proxies.edit(rig.ctx, "a", {"name": "moved"})
    token = Secret(proxies.new_token(rig.ctx, "moved")["join_token"])
    proxies.edit(rig.ctx, "b", {"name": "a"})
    proxies.enrol(rig.ctx, token=token, name="moved", version="unknown", **KEYS)
    # Now its old name is taken by one that was renamed, whose own is still its worker's.
    with pytest.raises(ConflictError, match="worker of proxy 'a' still goes by the name 'b'"):
        proxies.edit(rig.ctx, "moved", {"name": "b"})
    assert {mailbox(rig, first), mailbox(rig, other)} == {"moved", "b"}


def test_a_machine_does_not_join_under_the_name_of_anothers_worker(rigs: Any) -> None:
    rig = rigs("")
    taken_in(rig, "a")
    proxies.edit(rig.ctx, "a", {"name": "moved"})
    with rig.ctx.db() as s:  # as an earlier release let it be made
        s.add(
            Proxy(
                id=new_id(),
                name="a",
                local=False,
                enabled=True,
                slots=4,
                modes=[],
                join_token_hash=token_hash(Secret("known")),
                facts={},
                created_at=rig.clock.now,
            )
        )
    joining = {"token": Secret("known"), "name": "a", "version": "unknown", **KEYS}
    with pytest.raises(ConflictError, match="worker of proxy 'moved' still goes by the name 'a'"):
        proxies.enrol(rig.ctx, **joining)
    token = Secret(proxies.new_token(rig.ctx, "moved")["join_token"])
    assert proxies.enrol(rig.ctx, **joining)
    assert proxies.enrol(rig.ctx, token=token, name="moved", version="unknown", **KEYS)


def mailbox(rig: Rig, row: Proxy) -> str:
    """The name after which the worker's mailbox is called."""
    with rig.ctx.db.read() as s:
        now = s.get_one(Proxy, row.id)
        return str(now.settings.get(ENROLLED_AS, now.name))
