"""A proxy that fills the broker, or takes its connections, is cut off; the broker and the others go on."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from backup_server import broker
from backup_server.db.tables import Event, Proxy
from backup_server.services import broker_checks, broker_users, proxies, proxy_troubles
from backup_server.services.broker_guard import BrokerGuard, GuardLimits
from backup_server.services.broker_rules import own_keys, proxy_user
from proxy_worker.contracts.names import redis_client_url
from tests.fakes.server import Rig
from transports.vsphere.model import Secret

LIMITS = GuardLimits(
    key_entries=50,
    key_bytes=2 << 20,
    stream_entries=200,
    stream_bytes=4 << 20,
    shared_entries=20,
    shared_bytes=1 << 20,
    reply_keys=5,
    reply_bytes=2 << 20,
    measure_s=0.0,
    user_connections=30,
    stranger_age_s=1,
)
MEMORY_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Site:
    rig: Rig
    how: broker.EmbeddedBroker
    guard: BrokerGuard

    def client(self, proxy_id: str) -> redis.Redis:
        """The broker as that proxy reaches it."""
        with self.rig.ctx.db.read() as s:
            url = broker_users.access_of(self.rig.ctx, s, s.get_one(Proxy, proxy_id)).url
        client: redis.Redis = redis.Redis.from_url(redis_client_url(url))
        return client

    def server(self) -> redis.Redis:
        client: redis.Redis = redis.Redis.from_url(self.how.redis_url, decode_responses=True)
        return client

    def join(self, name: str, key: str) -> str:
        token = Secret((self.rig.settings.proxies_dir / name / "join-token").read_text().strip())
        return proxies.enrol(
            self.rig.ctx, token=token, name=name, signing_key=key, sealing_key=key, version="unknown"
        )

    def add(self, name: str, key: str) -> str:
        proxies.add(self.rig.ctx, name=name, local=True)
        return self.join(name, key)

    def row(self, proxy_id: str) -> Proxy:
        return self.rig.rows(Proxy, id=proxy_id)[0]

    def users(self) -> set[str]:
        with self.server() as client:
            return set(client.acl_users())  # type: ignore[arg-type]


@pytest.fixture
def site(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path
) -> Iterator[Site]:
    short = tmp_path_factory.mktemp("b")
    shutil.copyfile(sqlite_template, tmp_path / "jobs.db")
    rig = Rig(short, f"sqlite:///{tmp_path / 'jobs.db'}", broker_memory_bytes=MEMORY_BYTES)
    how = broker.prepare(rig.settings.broker_dir, rig.settings.run_dir)
    process = subprocess.Popen(how.command, stdout=subprocess.DEVNULL)
    guard = BrokerGuard(rig.ctx, LIMITS)
    try:
        _wait(how.answers)
        broker_users.ensure_passwords(rig.ctx)
        yield Site(rig=rig, how=how, guard=guard)
    finally:
        guard.close()
        rig.close()
        process.terminate()
        process.wait(30)


def _wait(condition: Callable[[], Any]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def many(key: str, how: str) -> Iterator[tuple[Any, ...]]:
    """Commands that fill a key of that kind with little, often."""
    for number in range(300):
        yield {
            "LLEN": ("LPUSH", key, "x"),
            "HLEN": ("HSET", key, f"f{number}", "x"),
            "ZCARD": ("ZADD", key, number, f"m{number}"),
            "SCARD": ("SADD", key, f"m{number}"),
            "XLEN": ("XADD", key, "*", "m", "x"),
            "STRLEN": ("HSET", key, f"f{number}", "x"),
        }[how]


def large(key: str, how: str) -> Iterator[tuple[Any, ...]]:
    """The same with much, seldom, behind some that are short."""
    for number in range(14):
        text = "x" * (900_000 if number > 6 else 1) + str(number)
        yield {
            "LLEN": ("RPUSH", key, text),
            "HLEN": ("HSET", key, f"f{number}", text),
            "ZCARD": ("ZADD", key, number, text),
            "SCARD": ("SADD", key, text),
            "XLEN": ("XADD", key, "*", "m", text),
            "STRLEN": ("HSET", key, f"f{number}", text),
        }[how]


@pytest.mark.parametrize("fill", [many, large])
def test_whoever_fills_a_key_of_its_own_is_cut_off(
    site: Site, fill: Callable[[str, str], Iterator[tuple[Any, ...]]]
) -> None:
    evil, good = site.add("evil", "ab" * 32), site.add("good", "cd" * 32)
    with site.client(good) as honest, site.server() as server:
        honest.lpush(own_keys(good, "good")[0][0], "an order")
        honest.xadd(own_keys(good, "good")[-1][0], {"m": "a report"})
        for key, how in own_keys(evil, "evil"):
            site.guard.step()
            assert {proxy_user(evil), proxy_user(good)} <= site.users(), key
            with site.client(evil) as client:
                with client.pipeline(transaction=False) as pipe:
                    for command in fill(key, how):
                        pipe.execute_command(*command)
                    pipe.execute()
                site.guard.step()
                with pytest.raises(redis.exceptions.ConnectionError):
                    client.ping()
            assert honest.ping()
            assert proxy_user(evil) not in site.users(), key
            assert server.exists(*(one for one, _ in own_keys(evil, "evil"))) == 0
            assert server.exists(*(one for one, _ in own_keys(good, "good"))) == 2
            assert "it filled the broker" in site.row(evil).state_note
            assert site.row(good).state_note == ""
            # It comes back when somebody has looked at it, and no sooner.
            site.guard.step()
            assert proxy_user(evil) not in site.users()
            proxies.new_token(site.rig.ctx, "evil")
            site.join("evil", "ef" * 32)
            assert proxy_user(evil) in site.users()
            assert not proxy_troubles.is_cut_off(site.row(evil).facts)


def test_a_full_broker_refuses_goes_on_and_is_emptied(site: Site) -> None:
    evil, good = site.add("evil", "ab" * 32), site.add("good", "cd" * 32)
    site.guard.step()
    key = own_keys(evil, "evil")[0][0]
    with site.client(evil) as client, client.pipeline(transaction=False) as pipe:
        for _ in range(100):
            pipe.lpush(key, b"x" * 1_000_000)
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            pipe.execute()
    with site.server() as server:
        assert server.info("memory")["used_memory"] < 2 * MEMORY_BYTES  # type: ignore[index]
    site.guard.step()
    assert "it filled the broker" in site.row(evil).state_note
    with site.client(good) as honest:
        _wait(lambda: _is_taken(honest, own_keys(good, "good")[-1][0]))


def _is_taken(client: redis.Redis, stream: str) -> bool:
    try:
        return bool(client.xadd(stream, {"m": "a report"}))
    except redis.exceptions.OutOfMemoryError:
        return False


def test_keys_of_any_name_are_not_to_be_had(site: Site) -> None:
    evil = site.add("evil", "ab" * 32)
    queue = own_keys(evil, "evil")[0][0]
    with site.client(evil) as client:
        for command in (
            ("SET", f"{queue}.unacked_1", "x"),
            ("LPUSH", f"{queue}.more", "x"),
            ("SET", "a.reply.celery.pidbox", "x"),
            ("SADD", "a.reply.celery.pidbox", "x"),
            ("SET", "_kombu.binding.celery.pidbox", "x"),
            ("DEL", "_kombu.binding.celery.pidbox"),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)  # type: ignore[no-untyped-call]
        # What a worker does: answer Flower, and say where its mailbox is.
        client.lpush("a.reply.celery.pidbox", "x")
        client.sadd("_kombu.binding.celery.pidbox", "x")


@pytest.mark.parametrize("shape", ["many", "large"])
def test_floods_of_what_all_share_are_emptied_and_answers_withheld(site: Site, shape: str) -> None:
    evil, good = site.add("evil", "ab" * 32), site.add("good", "cd" * 32)
    text = "x" * (900_000 if shape == "large" else 1)
    with site.client(evil) as client, site.client(good) as honest, site.server() as server:
        honest.lpush("honest.reply.celery.pidbox", "how I am")
        site.guard.step()
        assert server.exists("honest.reply.celery.pidbox")
        for number in range(30):
            client.lpush(f"{number if shape == 'many' else 'one'}.reply.celery.pidbox", text)
            client.sadd("_kombu.binding.celery.pidbox", f"{text}{number}")
        site.guard.step()
        assert server.keys("*.reply.celery.pidbox") == []
        assert not server.exists("_kombu.binding.celery.pidbox")
        for one in (client, honest):
            with pytest.raises(redis.exceptions.NoPermissionError):
                one.lpush("a.reply.celery.pidbox", "x")
        # Both are still there: nothing tells who it was.
        assert {proxy_user(evil), proxy_user(good)} <= site.users()
        [said] = [event.text for event in site.rig.rows(Event) if event.name == "broker.flood"]
        assert "look at these proxies first: evil" in said
        site.rig.clock.advance(LIMITS.withheld_s + 1)
        broker_users.BrokerUsers(site.rig.ctx).apply()
        honest.lpush("a.reply.celery.pidbox", "x")


def test_a_revoked_proxy_leaves_nothing(site: Site) -> None:
    evil = site.add("evil", "ab" * 32)
    keys = [one for one, _ in own_keys(evil, "evil")]
    with site.client(evil) as client, site.server() as server:
        for key, how in own_keys(evil, "evil"):
            client.execute_command(*next(many(key, how)))  # type: ignore[no-untyped-call]
        assert server.exists(*keys) == len(keys)
        client.sadd("_kombu.binding.celery.pidbox", "of all")
        proxies.remove(site.rig.ctx, "evil")
        assert server.exists(*keys) == 0
        assert server.exists("_kombu.binding.celery.pidbox")


def test_connections_that_never_log_in_make_room(site: Site) -> None:
    good = site.add("good", "cd" * 32)
    with site.server() as server:
        server.config_set("maxclients", 64)
    site.guard.step()
    idle = []
    try:
        for _ in range(100):
            one = socket.socket(socket.AF_UNIX)
            one.connect(str(site.how.socket_path))
            idle.append(one)
        with site.client(good) as honest, pytest.raises(redis.exceptions.ConnectionError):
            honest.ping()

        def let_in() -> bool:
            site.guard.step()
            try:
                with site.client(good) as honest:
                    return bool(honest.ping())
            except redis.exceptions.ConnectionError:
                return False

        _wait(let_in)
    finally:
        for one in idle:
            one.close()


def test_one_login_does_not_take_all_connections(site: Site) -> None:
    evil, good = site.add("evil", "ab" * 32), site.add("good", "cd" * 32)
    with site.server() as server:
        server.config_set("maxclients", 64)
    with site.client(good) as honest:
        honest.ping()
        site.guard.step()
        clients = [site.client(evil) for _ in range(40)]
        try:
            for one in clients:
                one.ping()
            site.guard.step()
            assert "connections" in site.row(evil).state_note
            assert honest.ping()
            with pytest.raises(redis.exceptions.ConnectionError):
                clients[0].ping()
        finally:
            for one in clients:
                one.close()
    assert site.row(good).state_note == ""


@pytest.mark.parametrize("refused", ["xlen", "memory|usage"])
def test_what_the_server_may_not_ask_is_no_fault_of_the_proxies(site: Site, refused: str) -> None:
    good = site.add("good", "cd" * 32)
    with site.client(good) as honest, site.server() as server:
        honest.xadd(own_keys(good, "good")[-1][0], {"m": "a report"})
        server.execute_command("ACL", "SETUSER", broker.SERVER_USER, f"-{refused}")  # type: ignore[no-untyped-call]
        site.guard.step()
        assert site.row(good).state_note == ""
        assert honest.ping()
        # Once it may, it looks as ever.
        server.execute_command("ACL", "SETUSER", broker.SERVER_USER, f"+{refused}")  # type: ignore[no-untyped-call]
        honest.hset(own_keys(good, "good")[0][0], "f", "x")
        site.guard.step()
        assert "not what a worker makes of it" in site.row(good).state_note


def test_the_guard_is_spared_over_every_connection_of_its_own(site: Site) -> None:
    def spared(server: redis.Redis) -> set[str]:
        return {str(one["id"]) for one in server.client_list() if "e" in one["flags"]}

    with site.server() as server:
        site.guard.step()
        before = spared(server)
        assert len(before) == 1
        server.client_kill_filter(_id=before.pop())  # type: ignore[no-untyped-call]
        with contextlib.suppress(redis.exceptions.ConnectionError):
            site.guard.step()
        site.guard.step()
        assert len(spared(server)) == 1


def test_the_broker_is_given_a_part_of_the_memory(site: Site) -> None:
    gib = 1 << 30
    assert broker.default_memory_bytes(8 * gib) == 2 * gib
    assert broker.default_memory_bytes(gib // 2) == broker.LEAST_MEMORY_BYTES
    assert broker.default_memory_bytes(1000 * gib) == 4 * gib
    with site.server() as server:
        at_start = int(server.config_get("maxmemory")["maxmemory"])  # type: ignore[index]
        assert at_start == broker.default_memory_bytes()
        site.guard.step()
        assert int(server.config_get("maxmemory")["maxmemory"]) == MEMORY_BYTES  # type: ignore[index]
        # What the doctor would ask of another Redis is there.
        assert list(broker_checks.hardness(server)) == []
        server.config_set("maxmemory", 0)
        [(text, _)] = broker_checks.hardness(server)
        assert "no limit of memory" in text
        server.config_set("maxmemory", MEMORY_BYTES)
        server.config_set("maxmemory-policy", "allkeys-lru")
        [(text, _)] = broker_checks.hardness(server)
        assert "forgets keys" in text
        server.config_set("maxmemory-policy", "noeviction")
        server.execute_command("ACL", "SETUSER", "default", "on", "nopass", "~*", "+@all")  # type: ignore[no-untyped-call]
        [(text, _)] = broker_checks.hardness(server)
        assert "default user is open" in text
