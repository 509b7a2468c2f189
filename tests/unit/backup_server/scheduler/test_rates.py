"""What running tasks are told of how fast they may move data."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from backup_server.db.tables import Proxy, Repository, Task, TrafficRule
from backup_server.scheduler import rates
from backup_server.scheduler.rates import RateKeeper
from backup_server.services import datastore_loads, proxies, traffic_rules
from backup_server.services.context import Context
from backup_server.services.latency import Control
from backup_server.services.lookups import Lookups
from backup_server.services.task_ends import Ends
from proxy_worker.contracts.messages import DownMessage, RateLimit, RateOrder
from tests.support.history import Clock, Seeded
from transports.base import TransportMode
from transports.vsphere.model import HostAddress

PROXY, HOST, STORE = "10.0.0.5", "10.0.1.9", "10.7.0.3"


class Down:
    def __init__(self) -> None:
        self.sent: list[RateOrder] = []

    def send(self, proxy_id: str, messages: Iterable[DownMessage]) -> None:
        del proxy_id
        self.sent += [one for one in messages if isinstance(one, RateOrder)]

    def take(self) -> dict[str, RateLimit | None]:
        taken = {one.task_id: one.rate for one in self.sent}
        self.sent.clear()
        return taken


class OneHost:
    def host_addresses(self, moref: str) -> tuple[HostAddress, ...]:
        return (HostAddress(address=HOST),) if moref == "host-1" else ()


class Rig:
    def __init__(self, ctx: Context, clock: Clock) -> None:
        self.ctx, self.clock = ctx, clock
        self.down = Down()
        self.leads = True
        self.lookups = Lookups(clock, ctx.log)
        self.wake = threading.Event()
        self.keeper = self.new_keeper(clock)

    def new_keeper(self, steady: Clock) -> RateKeeper:
        ends = Ends(lambda _: OneHost(), self.lookups)  # type: ignore[arg-type, return-value]
        down: Any = self.down
        return RateKeeper(
            self.ctx, down, ends, leading=lambda: self.leads, wake=self.wake, steady=steady
        )

    def round(self) -> dict[str, RateLimit | None]:
        """What was told in one round."""
        self.keeper.step()
        return self.down.take()

    def later(self, seconds: float) -> dict[str, RateLimit | None]:
        self.clock.now += timedelta(seconds=seconds)
        return self.round()

    def rule(self, name: str, rate: str | None, **more: Any) -> None:
        body = {"name": name, "source": ["10.0.0.0/24"], "target": ["10.0.1.0/24"], "rate": rate}
        traffic_rules.add(self.ctx, {**body, **more})

    def task(self, name: str, **values: Any) -> str:
        """A running backup of a disk of which only the id is new."""
        with self.ctx.db() as s:
            first = s.get_one(Task, "task-run-1")
            columns = {c.key: getattr(first, c.key) for c in sa.inspect(Task).mapper.column_attrs}
            columns |= {"id": name, "disk_key": 5000 + len(name) * 100 + ord(name[-1])}
            columns |= {"state": "running", "host_moref": "host-1", "rate_bytes_per_s": None}
            s.add(Task(**{**columns, **values}))
        return name

    def end(self, *names: str) -> None:
        with self.ctx.db() as s:
            s.execute(sa.update(Task).where(Task.id.in_(names)).values(state="done"))

    def know_the_host(self) -> None:
        """Its addresses were looked up for a task that is over."""
        self.task("looked-up")
        self.round()
        self.end("looked-up")
        self.round()

    def stored(self, name: str) -> int | None:
        with self.ctx.db.read() as s:
            return s.get_one(Task, name).rate_bytes_per_s


@pytest.fixture
def rig(ctx: Context, seeded: Seeded, clock: Clock) -> Iterator[Rig]:
    del seeded
    with ctx.db() as s:
        s.execute(sa.update(Task).where(Task.state == "running").values(state="done"))
        proxy = s.query(Proxy).filter_by(name="default").one()
        proxy.version = "0.4.0"
        proxy.connections = {"addresses": [f"{PROXY}/24", "127.0.0.1/8", "nonsense"]}
        proxy.connections_at = clock()
    rig = Rig(ctx, clock)
    yield rig
    rig.lookups.close()


def source(bytes_per_s: int) -> RateLimit:
    return RateLimit(bytes_per_s=bytes_per_s, source=True, target=False)


def test_nothing_is_said_where_nothing_is_limited(rig: Rig) -> None:
    rig.task("a")
    assert rig.round() == {}
    assert rig.later(60) == {}


def test_a_rule_is_shared_and_what_one_had_comes_back_when_it_ends(rig: Rig) -> None:
    rig.rule("hosts", "80Mbit")
    rig.task("a")
    assert rig.round() == {"a": source(10_000_000)}
    rig.task("b")
    assert rig.later(2) == {"a": source(5_000_000), "b": source(5_000_000)}
    assert rig.stored("a") == 5_000_000
    assert rig.later(2) == {}, "nothing changed"
    rig.end("a")
    assert rig.later(2) == {"b": source(10_000_000)}


def test_what_holds_is_said_again_and_what_ended_a_few_times(rig: Rig) -> None:
    rig.rule("hosts", "80Mbit")
    rig.task("a")
    assert rig.round() == {"a": source(10_000_000)}
    assert rig.later(11) == {"a": source(10_000_000)}
    with rig.ctx.db() as s:
        s.query(TrafficRule).delete()
    assert [rig.later(11) for _ in range(5)] == [{"a": None}] * 3 + [{}] * 2
    assert rig.stored("a") is None


def test_a_new_leader_lifts_what_the_one_before_had_ordered(rig: Rig) -> None:
    rig.task("a", rate_bytes_per_s=5)
    assert rig.round() == {"a": None}
    assert rig.stored("a") is None


def test_a_rule_covers_by_mode_and_by_restore(rig: Rig) -> None:
    rig.rule("hosts", "80Mbit")
    rig.task("san", mode="direct-san")
    rig.task("moved", mode="direct-san", progress={"mode": "nbdssl"})
    rig.task("back", kind="restore-disk-to-vm")
    assert rig.round() == {"moved": source(10_000_000)}
    with rig.ctx.db() as s:
        for row in s.query(TrafficRule):
            row.options = {**row.options, "restores": True}
    told = rig.later(2)
    assert told["back"] == RateLimit(bytes_per_s=5_000_000, source=False, target=True)


def test_a_lun_over_iscsi_comes_from_its_portal(rig: Rig) -> None:
    rig.rule("storage", "80Mbit", target=["10.8.0.0/24"])
    rig.task("san", mode="direct-san")
    rig.task("other", mode="direct-san", datastore="vc-1/other")
    assert rig.round() == {}, "nothing is known of its way"
    rig.clock.now += timedelta(seconds=2)
    with rig.ctx.db() as s:
        proxy = s.query(Proxy).filter_by(name="default").one()
        seen = {"datastore": "vc-1/ssd", "mode": "direct-san", "portals": ["10.8.0.40"]}
        proxy.connections = {**proxy.connections, "connections": [seen]}
        proxy.connections_at = rig.clock()
    assert rig.round() == {"san": source(10_000_000)}


def test_the_repository_is_the_other_end(rig: Rig) -> None:
    with rig.ctx.db() as s:
        s.query(Repository).one().location = f"s3://bucket/x?endpoint=http://{STORE}:9000"
    rig.rule("branch", "8Mbit", target=["10.7.0.0-10.7.0.9"])
    rig.task("a")
    assert rig.round() == {"a": RateLimit(bytes_per_s=1_000_000, source=False, target=True)}
    rig.rule("hosts", "80Mbit")
    both = RateLimit(bytes_per_s=1_000_000, source=True, target=True)
    assert rig.later(2) == {"a": both}, "the lowest wins, and both ends count"


def test_hours_change_the_rate(rig: Rig) -> None:
    window = {"hours": [{"days": ["mon"], "from": "02:00", "to": "03:00"}]}
    rig.rule("hosts", "80Mbit", windows=[{"window": window, "rate": "8Mbit"}])
    rig.task("a")
    assert rig.round() == {"a": source(1_000_000)}  # Monday, 02:30
    assert rig.later(3600) == {"a": source(10_000_000)}


def test_tasks_on_a_slow_datastore_share_what_it_bears(rig: Rig) -> None:
    with rig.ctx.db() as s:
        row = datastore_loads.row_of(s, "vc-1", "ssd")
        row.measured_at, row.read_latency_ms = rig.clock(), 55
        row.control = Control(
            closed_since=rig.clock(), allowance_bytes_per_s=9_000_000, before_bytes_per_s=12_000_000
        ).to_json()
    rig.task("a", mode="direct-san")
    rig.task("b")
    rig.task("c", datastore="vc-1/other")
    rig.task("d", kind="restore-disk-to-vm")
    assert rig.round() == {"a": source(4_500_000), "b": source(4_500_000)}
    assert rig.later(120) == {"a": None, "b": None}, "an old figure slows nobody"


def test_a_worker_of_the_release_before_is_not_told(rig: Rig) -> None:
    with rig.ctx.db() as s:
        s.query(Proxy).filter_by(name="default").one().version = "0.3.0"
    rig.rule("hosts", "80Mbit")
    rig.task("a")
    assert rig.round() == {}
    assert rig.stored("a") == 10_000_000


def start(rig: Rig, name: str, mode: TransportMode = TransportMode.NBDSSL) -> RateLimit | None:
    """Hand a task out, as the dispatcher does; with which rate."""
    with rig.ctx.db() as s:
        row = s.get_one(Task, rig.task(name, state="pending"))
        proxy_id = s.query(Proxy).filter_by(name="default").one().id
        told = rig.keeper.at_start(s, [(row, proxy_id, mode)]).get(name)
        row.state, row.attempt, row.mode = "running", row.attempt + 1, mode.value
        row.rate_bytes_per_s = None if told is None else told.bytes_per_s
    return told


def tell(rig: Rig, name: str, rate: int, **more: float) -> None:
    """Its proxy tells which rate holds."""
    with rig.ctx.db() as s:
        s.get_one(Task, name).progress = {"rate_bytes_per_s": rate, **more}


def test_a_task_begins_with_what_is_free_and_the_others_make_room(rig: Rig) -> None:
    rig.rule("hosts", "80Mbit")
    rig.know_the_host()
    assert start(rig, "a") == source(10_000_000)
    assert start(rig, "san", TransportMode.DIRECT_SAN) is None
    tell(rig, "a", 10_000_000)
    assert rig.later(2) == {"a": source(10_000_000)}
    rig.clock.now += timedelta(seconds=1)
    assert start(rig, "b") == source(1), "the first has all of it"
    assert rig.wake.is_set(), "a round that tells the first is asked for"
    assert rig.later(1) == {"a": source(5_000_000), "b": source(1)}
    assert rig.later(1) == {}, "nothing was heard of it yet"
    tell(rig, "a", 5_000_000)
    assert rig.later(1) == {"b": source(5_000_000)}
    tell(rig, "b", 5_000_000)
    rig.end("a")
    assert rig.later(2) == {"b": source(10_000_000)}


def test_a_task_that_begins_before_the_first_round_waits_for_it(rig: Rig) -> None:
    rig.rule("hosts", "80Mbit")
    rig.know_the_host()
    rig.leads = False
    rig.round()
    rig.leads = True
    tell(rig, rig.task("a"), 10_000_000)
    assert start(rig, "b") == source(1), "nobody knows yet what runs"
    assert rig.round() == {"a": source(5_000_000), "b": source(1)}


def test_a_task_whose_host_is_being_looked_up_stands_still_for_a_while(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "LOOKUP_WAIT_S", 0.01)
    answer = threading.Event()
    known = OneHost.host_addresses

    def late(self: OneHost, moref: str) -> tuple[HostAddress, ...]:
        answer.wait(60)
        return known(self, moref)

    monkeypatch.setattr(OneHost, "host_addresses", late)
    still = RateLimit(bytes_per_s=1, source=True, target=True)
    rig.rule("hosts", "80Mbit")
    assert rig.round() == {}
    assert start(rig, "a") == still
    assert rig.round() == {"a": still}
    assert rig.later(9) == {}
    assert rig.later(1) == {"a": None}, "what is not found out is covered by no rule"
    answer.set()
    monkeypatch.setattr(rates, "LOOKUP_WAIT_S", 60)
    assert rig.later(2) == {"a": source(10_000_000)}


def test_an_order_is_said_again_until_the_proxy_tells_that_it_holds(rig: Rig) -> None:
    rig.rule("hosts", "80Mbit")
    tell(rig, rig.task("a"), 0)
    assert rig.round() == {"a": source(10_000_000)}
    assert [rig.later(2) for _ in range(3)] == [{"a": source(10_000_000)}] * 3
    tell(rig, "a", 10_000_000)
    assert [rig.later(20) for _ in range(3)] == [{}] * 3
    with rig.ctx.db() as s:
        s.query(TrafficRule).delete()
    assert [rig.later(2) for _ in range(5)] == [{"a": None}] * 5
    tell(rig, "a", 0)
    assert [rig.later(20) for _ in range(3)] == [{}] * 3


@pytest.mark.parametrize("set_by", [timedelta(hours=-1), timedelta(hours=1)])
def test_a_clock_that_is_set_changes_nothing_of_what_is_said_again(rig: Rig, set_by: timedelta) -> None:
    steady = Clock()
    rig.keeper = rig.new_keeper(steady)
    rig.rule("hosts", "80Mbit")
    tell(rig, rig.task("a"), 0)
    assert rig.round() == {"a": source(10_000_000)}
    rig.clock.now += set_by
    assert rig.round() == {}
    steady.now += timedelta(seconds=2)
    assert rig.round() == {"a": source(10_000_000)}


@pytest.mark.parametrize(("stored", "wanted"), [(None, None), (10_000_000, 10_000_000)])
def test_what_a_server_stored_and_did_not_say_is_said_by_the_next(
    rig: Rig, stored: int | None, wanted: int | None
) -> None:
    tell(rig, rig.task("a", rate_bytes_per_s=stored), 5_000_000)
    if wanted is not None:
        rig.rule("hosts", "80Mbit")
    said = {"a": None if wanted is None else source(wanted)}
    assert rig.round() == said
    assert rig.later(2) == said
    tell(rig, "a", wanted or 0)
    assert [rig.later(20) for _ in range(3)] == [{}] * 3


def test_what_a_slow_task_does_not_use_goes_to_the_others_and_back(rig: Rig) -> None:
    rig.rule("hosts", "80Mbit")
    for name in ("a", "b"):
        tell(rig, rig.task(name), 5_000_000, passed_bytes_per_s=5e6, held_share=0.5)
    rig.round()
    for _ in range(6):
        tell(rig, "a", 5_000_000, passed_bytes_per_s=1e6)
        rig.later(2)
    assert rig.stored("a") == 1_250_000, "what it uses, and a quarter more"
    assert rig.stored("b") == 5_000_000, "as long as nothing was heard"
    tell(rig, "a", 1_250_000, passed_bytes_per_s=1.05e6)
    assert rig.later(2) == {"b": source(8_750_000)}
    tell(rig, "b", 8_750_000, passed_bytes_per_s=8.7e6, held_share=0.1)
    tell(rig, "a", 1_250_000, passed_bytes_per_s=1.2e6)
    assert rig.later(2) == {"b": source(5_000_000)}
    tell(rig, "b", 5_000_000, passed_bytes_per_s=5e6, held_share=0.5)
    assert rig.later(2)["a"] == source(5_000_000)


def test_a_proxy_has_a_rate_of_its_own_beside_the_rules(rig: Rig) -> None:
    proxies.edit(rig.ctx, "default", {"rate_limit": "40Mbit"})
    rig.task("a")
    rig.task("san", mode="direct-san")
    rig.task("elsewhere", proxy_id=None)
    rig.task("back", kind="restore-disk-to-vm")
    assert rig.round() == {"a": source(5_000_000)}, "what no network carries is not held"
    rig.task("b", host_moref="host-of-unknown-address")
    assert rig.later(2) == {"a": source(2_500_000), "b": source(2_500_000)}
    rig.rule("hosts", "8Mbit")
    assert rig.later(2) == {"a": source(1_000_000), "b": source(4_000_000)}, "the lowest wins"
    proxies.edit(rig.ctx, "default", {"rate_restores": True, "rate_limit": "48Mbit"})
    told = rig.later(2)
    assert told["back"] == RateLimit(bytes_per_s=2_500_000, source=False, target=True)
    proxies.edit(rig.ctx, "default", {"rate_limit": None})
    assert rig.later(2) == {"b": None, "back": None}


def test_nothing_of_a_proxy_is_held_that_stays_on_its_machine(rig: Rig) -> None:
    proxies.edit(rig.ctx, "default", {"rate_limit": "40Mbit"})
    with rig.ctx.db() as s:
        s.query(Proxy).filter_by(name="default").one().connections = {"addresses": [f"{HOST}/24"]}
    rig.task("a")
    assert rig.round() == {}
    with rig.ctx.db() as s:
        s.query(Repository).one().location = f"s3://bucket/x?endpoint=https://{STORE}:9000"
    rig.task("b")
    assert rig.later(2) == {"b": RateLimit(bytes_per_s=5_000_000, source=False, target=True)}
