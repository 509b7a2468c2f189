"""The door for proxies over real TLS: who says nothing keeps nobody out; its certificate is renewed while it runs."""

from __future__ import annotations

import hashlib
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from backup_server import server_certificates
from backup_server.doorkeeper import Doorkeeper, DoorLimits
from backup_server.doors import Door
from backup_server.main import listen, make_doorstep, utc_now
from backup_server.proxies_door import ProxiesDoor
from backup_server.web.logins import Logins
from proxy_worker.trust import CA_PATH, pinned_context
from tests.fakes.server import Rig
from transports.vsphere.model import Secret

LIMITS = DoorLimits(most=40, most_of_address=30, most_unknown=20, most_unknown_of_address=10)
LATER_S = 2 * LIMITS.question_s


class Open:
    """A door that is open."""

    def __init__(self, rig: Rig, limits: DoorLimits) -> None:
        listener = listen("127.0.0.1", 0, "")
        # Before its thread comes to it, so that whoever comes first waits.
        listener.listen(128)
        self.port = int(listener.getsockname()[1])
        token = Secret("token")
        step = make_doorstep(rig.ctx, token, Logins(token, rig.ctx.clock))
        place = Door(host="127.0.0.1", port=self.port)
        self.rig = rig
        self.now_s = 0.0
        self.door = ProxiesDoor(rig.ctx, step, place, listener, clock=self.clock, limits=limits)
        self.door.start()

    def clock(self) -> float:
        return self.now_s

    @property
    def trust(self) -> ssl.SSLContext:
        settings = self.rig.settings
        return pinned_context(server_certificates.ca_pem(settings.tls_dir, self.rig.clock()))

    def client(self, address: str = "127.0.0.1") -> httpx.Client:
        transport = httpx.HTTPTransport(verify=self.trust, local_address=address)
        url = f"https://127.0.0.1:{self.port}"
        return httpx.Client(transport=transport, base_url=url, trust_env=False, timeout=60)

    def plain(self, address: str = "127.0.0.1") -> socket.socket:
        """A connection that has said nothing yet."""
        return socket.create_connection(
            ("127.0.0.1", self.port), timeout=60, source_address=(address, 0)
        )

    def shown(self) -> str:
        """SHA-256 of the certificate that a new connection is shown."""
        with self.plain() as raw, self.trust.wrap_socket(raw, server_hostname="127.0.0.1") as secure:
            return hashlib.sha256(secure.getpeercert(binary_form=True) or b"").hexdigest()


@pytest.fixture
def rig(tmp_path: Path, sqlite_template: Path) -> Iterator[Rig]:
    shutil.copyfile(sqlite_template, tmp_path / "jobs.db")
    made = Rig(tmp_path, f"sqlite:///{tmp_path / 'jobs.db'}", proxies_listen="127.0.0.1:1")
    made.clock.now = utc_now()
    yield made
    made.close()


@pytest.fixture
def opened(rig: Rig) -> Iterator[Callable[[DoorLimits], Open]]:
    made: list[Open] = []

    def make(limits: DoorLimits) -> Open:
        made.append(Open(rig, limits))
        return made[-1]

    yield make
    for one in made:
        one.door.stop()


def is_closed(connection: socket.socket) -> bool:
    """Waits for it."""
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2"])
def test_idle_connections_keep_nobody_out(opened: Callable[[DoorLimits], Open], address: str) -> None:
    door = opened(LIMITS)
    with ExitStack() as stack:
        idle = [stack.enter_context(door.plain(address)) for _ in range(60)]
        # The oldest of them had to go; the others still have their time.
        assert all(is_closed(one) for one in idle[:49])
        with door.client() as client:
            assert client.get(CA_PATH).status_code == 200
        assert len(door.door.keeper) <= LIMITS.most_unknown_of_address + 1


def test_many_addresses_take_no_more_than_their_part(opened: Callable[[DoorLimits], Open]) -> None:
    door = opened(LIMITS)
    with ExitStack() as stack:
        for number in range(60):
            stack.enter_context(door.plain(f"127.0.1.{number + 1}"))
        with door.client() as client:
            assert client.get(CA_PATH).status_code == 200
        assert len(door.door.keeper) <= LIMITS.most_unknown + 1


@pytest.mark.parametrize("said", ["nothing", "half of TLS", "half of a head", "half of a body"])
def test_whoever_does_not_come_to_the_point_is_sent_away(
    opened: Callable[[DoorLimits], Open], said: str
) -> None:
    door = opened(LIMITS)
    with ExitStack() as stack:
        raw = stack.enter_context(door.plain())
        if said == "half of TLS":
            raw.sendall(b"\x16\x03\x01\x02\x00\x01")
        elif said != "nothing":
            raw = stack.enter_context(door.trust.wrap_socket(raw, server_hostname="127.0.0.1"))
            raw.sendall(b"POST /api/v1/proxy/secrets HTTP/1.1\r\nHost: x\r\n")
        if said == "half of a body":
            raw.sendall(b"Content-Length: 1000\r\n\r\nhalf")
        with door.client() as client:
            # It was accepted before this one.
            assert client.get(CA_PATH).status_code == 200
        door.now_s += LATER_S
        assert is_closed(raw)


def test_who_is_answered_has_all_the_time_that_takes(
    opened: Callable[[DoorLimits], Open], monkeypatch: pytest.MonkeyPatch
) -> None:
    swept, sweep = threading.Semaphore(0), Doorkeeper.sweep

    async def counted(keeper: Doorkeeper) -> None:
        await sweep(keeper)
        swept.release()

    def slow(*given: Any, **more: Any) -> str:
        door.now_s += LATER_S
        # The second of two began after that.
        assert swept.acquire(timeout=60)
        assert swept.acquire(timeout=60)
        return "answer"

    monkeypatch.setattr(Doorkeeper, "sweep", counted)
    monkeypatch.setattr("backup_server.services.proxy_door.ProxyDoor.answer", slow)
    door = opened(LIMITS)
    with door.client() as client:
        assert client.get(CA_PATH).status_code == 200
        while swept.acquire(blocking=False):
            pass
        assert client.post("/api/v1/proxy/present", content=b"x").text == "answer"


def test_a_connection_with_a_believed_question_stays(
    opened: Callable[[DoorLimits], Open], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "backup_server.services.proxy_door.ProxyDoor.answer", lambda *given, **more: "answer"
    )
    door = opened(LIMITS)
    with ExitStack() as stack:
        client = stack.enter_context(door.client())
        client.post("/api/v1/proxy/present", content=b"x")
        for _ in range(60):
            stack.enter_context(door.plain())
        # It would be made anew without a word: what counts is that it is the same.
        [before] = _connections(client)
        assert client.post("/api/v1/proxy/present", content=b"x").text == "answer"
        assert _connections(client) == [before]


def _connections(client: httpx.Client) -> list[Any]:
    transport: Any = client._transport
    return list(transport._pool.connections)


def test_a_renewed_certificate_is_shown_to_the_next_who_comes(
    opened: Callable[[DoorLimits], Open], rig: Rig
) -> None:
    now = rig.clock.now
    # TLS looks at the machine's clock, so what will be too old now was made long ago.
    rig.clock.now = (
        now - server_certificates.LIFE + server_certificates.RENEW_BEFORE - timedelta(days=1)
    )
    door = opened(DoorLimits())
    before = door.shown()
    assert not door.door.renew()
    assert door.shown() == before
    with door.client() as client:
        client.get(CA_PATH)
        [connection] = _connections(client)
        rig.clock.now = now
        assert door.door.renew()
        # Who is there stays; who comes sees the new one, and knows it by the authority that its token named.
        assert client.get(CA_PATH).status_code == 200
        assert _connections(client) == [connection]
    after = door.shown()
    assert after != before
    assert not door.door.renew()
    assert door.shown() == after
    assert server_certificates.ends_at(rig.settings.tls_dir / "door.pem") > now + timedelta(days=300)
