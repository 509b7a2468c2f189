"""A proxy on another machine, as it looks from here: through the door, behind TLS, with a user of its own; and one
that is hostile.
"""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import celery
import httpx
import psutil
import pytest
import redis
from nacl.public import PrivateKey
from nacl.signing import SigningKey

from backup_server.broker import server_url
from proxy_worker.config import broker_login, load_enrolment, server_trust
from proxy_worker.contracts.envelope import SERVER, Opener, Sealer
from proxy_worker.contracts.ids import Attempt, ProxyId, TaskId
from proxy_worker.contracts.join_token import JoinToken, parse_join_token
from proxy_worker.contracts.messages import SecretsRequest
from proxy_worker.contracts.names import down_stream, redis_client_url, task_queue, up_stream
from proxy_worker.enrol import join
from proxy_worker.errors import EnrolmentError, LeaseRefusedError, ServerUnavailableError
from proxy_worker.identity import load_or_create_identity
from proxy_worker.server_api import ServerClient, post_enrolment
from tests.integration.up.running import VMHAUL, Up, run, wait_for
from tests.support.certificates import make_certificate

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    data = tmp_path_factory.mktemp("remote") / "data"
    options = ("--no-flower", "--proxies-listen", "127.0.0.1:0", "--proxies-broker-port", "0")
    with Up(data, *options) as running:
        yield running


def client_of(directory: Path) -> redis.Redis:
    """The broker, as the proxy in that directory reaches it."""
    enrolment = load_enrolment(directory)
    assert enrolment is not None
    url = redis_client_url(broker_login(directory, enrolment).broker_url)
    assert url.startswith("rediss://")
    client: redis.Redis = redis.Redis.from_url(url, protocol=2)
    return client


def server_client(up: Up) -> redis.Redis:
    client: redis.Redis = redis.Redis.from_url(
        redis_client_url(server_url(up.data / "run")), decode_responses=True
    )
    return client


def enrolled(up: Up, name: str, tmp_path: Path) -> tuple[Path, str]:
    """Directory and id of a proxy that joined and whose worker does not run."""
    text = up.json("proxy", "add", name)["join_token"]
    return tmp_path / name, join(tmp_path / name, text).proxy_id


def default_id(up: Up) -> str:
    return str(up.json("proxy", "show", "default")["id"])


def test_one_text_is_all_it_takes(site: Up, tmp_path: Path) -> None:
    text = site.json("proxy", "add", "far")["join_token"]
    directory = tmp_path / "far"
    done = run("proxy", "join", "--data", str(directory), text[:-5])
    assert (done.returncode, "not whole" in done.stderr) == (1, True)
    done = run("proxy", "join", "--data", str(directory), "--token-stdin", stdin=text + "\n")
    assert done.returncode == 0, done.stderr
    # The token works once.
    again = run("proxy", "join", "--data", str(tmp_path / "thief"), text)
    assert (again.returncode, "works once" in again.stderr) == (1, True)
    for name in ("enrolment.json", "server-ca.pem", "broker-ca.pem", "signing.key", "sealing.key"):
        assert (directory / name).stat().st_mode & 0o077 == 0, name

    log = (tmp_path / "far.log").open("wb")
    worker = subprocess.Popen(
        [str(VMHAUL), "proxy", "run", "--data", str(directory)], stdout=log, stderr=log
    )
    try:
        wait_for("the remote proxy is online", lambda: site.proxy_is_online("far"))
        wait_for("the server's own is online", lambda: site.proxy_is_online("default"))
        with server_client(site) as client:
            # Everything that workers do is allowed to them.
            log_of_refusals: Any = client.acl_log()
            assert [e for e in log_of_refusals if str(e["username"]).startswith("vmhaul-px-")] == []
            _nobody_is_told_what_to_do(client, worker, site)
        password = urlsplit(
            json.loads((directory / "enrolment.json").read_text())["broker_url"]
        ).password
        assert password
        lines = [" ".join(one.cmdline()) for one in [*site.tree(), psutil.Process(worker.pid)]]
        assert all(password not in line for line in lines)
        assert password not in (tmp_path / "far.log").read_text()
        # Revoked: its connections end, its queue goes, and it is heard no longer.
        answer = site.json("proxy", "revoke", "far", "--yes")
        assert (answer["enrolled"], answer["repositories_to_rotate"]) == (False, [])
        with server_client(site) as client:
            users: Any = client.execute_command("ACL", "USERS")  # type: ignore[no-untyped-call]
            assert [name for name in users if answer["id"] in name] == []
            wait_for("it is cut off", lambda: not _connections_of(client, answer["id"]))
            assert client.exists(task_queue(answer["id"]), up_stream(answer["id"])) == 0
    finally:
        worker.terminate()
        worker.wait(60)
        log.close()


def _connections_of(client: redis.Redis, proxy_id: str) -> list[Any]:
    found: Any = client.client_list()
    return [one for one in found if proxy_id in str(one.get("user"))]


def _nobody_is_told_what_to_do(client: redis.Redis, worker: subprocess.Popen[bytes], site: Up) -> None:
    """Even who has the server's own login cannot stop a worker by a control message; looking is answered."""
    app = celery.Celery("stranger", broker=server_url(site.data / "run"), set_as_current=False)
    try:
        app.control.broadcast("shutdown")
        app.control.broadcast("pool_shrink", arguments={"n": 60})
        app.control.cancel_consumer("vmhaul.px.x")
        ask = app.control.inspect(timeout=5.0, destination=["far@vmhaul"], limit=1)
        answer = wait_for("the worker says how it is", ask.stats)
        assert answer["far@vmhaul"]["pool"]["max-concurrency"] > 60
        conf = app.control.inspect(timeout=5.0, destination=["far@vmhaul"], limit=1).conf()
        assert "vmhaul-px-" not in str(conf) or ":**" in str(conf)
    finally:
        app.close()
    assert worker.poll() is None
    assert client.ping()


def test_an_answer_that_was_lost_is_given_again(
    site: Up, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = site.json("proxy", "add", "unlucky")["join_token"]
    answered: list[Any] = []

    def lost(*given: Any) -> Any:
        answered.append(post_enrolment(*given))
        raise ServerUnavailableError("the connection broke")

    with monkeypatch.context() as patched:
        patched.setattr("proxy_worker.enrol.post_enrolment", lost)
        with pytest.raises(ServerUnavailableError):
            join(tmp_path / "unlucky", text)
    [first] = answered
    # Who else has the token has other keys.
    with pytest.raises(EnrolmentError, match="works once"):
        join(tmp_path / "thief", text)
    again = join(tmp_path / "unlucky", text)
    assert (again.proxy_id, again.broker_url) == (first["proxy_id"], first["broker_url"])
    with client_of(tmp_path / "unlucky") as client:
        assert client.ping()


def test_the_door_has_nothing_else(site: Up, tmp_path: Path) -> None:
    [url] = _doors(site)
    text = site.json("proxy", "add", "looker")["join_token"]
    join(tmp_path / "looker", text)
    trust = server_trust(tmp_path / "looker")
    assert trust is not None
    bearer = {"Authorization": f"Bearer {site.token}"}
    with httpx.Client(verify=trust, base_url=url, headers=bearer, trust_env=False) as client:
        for path in (
            "/",
            "/login",
            "/api/v1/proxies",
            "/api/v1/jobs",
            "/api/v1/openapi.json",
            "/api/v1/metrics",
        ):
            assert client.get(path).status_code == 404, path
        assert client.get("/ca.pem").text == (site.data / "tls" / "ca.pem").read_text()
        assert client.post("/api/v1/proxy/secrets", content=b"x" * 70_000).status_code == 413
        assert client.post("/api/v1/proxy/secrets", content=b"x" * 20_000).status_code == 400
        assert client.post("/api/v1/proxy/secrets", content=b"junk").status_code == 401
        wrong = {
            "token": "vmhj_x",
            "name": "looker",
            "signing_key": "ab" * 32,
            "sealing_key": "cd" * 32,
        }
        assert client.post("/api/v1/enrol", json={**wrong, "version": "unknown"}).status_code == 401
    # Only TLS is spoken there.
    with pytest.raises(httpx.HTTPError):
        httpx.get(url.replace("https", "http") + "/ca.pem", trust_env=False)


def _doors(site: Up) -> list[str]:
    answer = httpx.get(
        f"{site.url}/api/v1/about", headers={"Authorization": f"Bearer {site.token}"}, trust_env=False
    )
    return list(answer.json()["proxies_door"])


def test_a_hostile_proxy_at_the_broker(site: Up, tmp_path: Path) -> None:
    directory, own = enrolled(site, "evil", tmp_path)
    other = ProxyId(default_id(site))
    wait_for("the other is online", lambda: site.proxy_is_online("default"))
    attempts: list[tuple[Any, ...]] = [
        ("LRANGE", task_queue(other), 0, -1),
        ("BRPOP", task_queue(other), 1),
        ("LPUSH", task_queue(other), "order"),
        ("HGETALL", f"{task_queue(other)}.unacked"),
        ("DEL", task_queue(other)),
        ("XADD", up_stream(other), "*", "m", "report"),
        ("XREAD", "STREAMS", up_stream(other), "0"),
        ("XREAD", "STREAMS", down_stream(other), "0"),
        ("XADD", down_stream(other), "*", "m", "verdict"),
        ("XADD", down_stream(ProxyId(own)), "*", "m", "verdict"),
        ("HSET", f"vmhaul:px:{other}", "max", "0"),
        ("HGETALL", f"vmhaul:px:{other}"),
        ("ZRANGE", "vmhaul:lease", 0, -1),
        ("SET", "vmhaul:epoch", "0"),
        ("DEL", "vmhaul:epoch"),
        ("PUBLISH", "/0.celery.pidbox", "shutdown"),
        ("ZADD", "_kombu.binding_deadlines", 1, "x"),
        ("SREM", f"_kombu.binding.{task_queue(other)}", "x"),
        ("EVAL", "return redis.call('KEYS', '*')", 0),
        ("SCRIPT", "LOAD", "while true do end"),
        ("KEYS", "*"),
        ("SCAN", 0),
        ("MONITOR",),
        ("CONFIG", "SET", "appendonly", "no"),
        ("ACL", "SETUSER", "me", "on", "nopass", "~*", "+@all"),
        ("ACL", "LIST"),
        ("CLIENT", "LIST"),
        ("CLIENT", "KILL", "TYPE", "normal"),
        ("CLIENT", "PAUSE", 10_000),
        ("SHUTDOWN", "NOSAVE"),
        ("FLUSHALL",),
        ("MIGRATE", "127.0.0.1", 1, "x", 0, 10),
        ("REPLICAOF", "127.0.0.1", 1),
    ]
    with client_of(directory) as client:
        for command in attempts:
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)  # type: ignore[no-untyped-call]
        with pytest.raises((redis.exceptions.ResponseError, redis.exceptions.ConnectionError)):
            client.set("vmhaul.px." + own, b"x" * (2 << 20))
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command("PSUBSCRIBE", "/0.celeryev/*")  # type: ignore[no-untyped-call]
    # It is seen, and the others go on.
    # (Its exit status tells of other things too: proxies that joined here and never ran.)
    said = site.vmhaul("doctor", "--json").stdout
    assert "the broker refused proxies something" in said
    assert f"vmhaul-px-{own}" in said
    assert site.proxy_is_online("default")


def test_whoever_fills_the_broker_is_cut_off(site: Up, tmp_path: Path) -> None:
    directory, own = enrolled(site, "flood", tmp_path)
    cut = (redis.exceptions.ConnectionError, redis.exceptions.AuthenticationError)
    with client_of(directory) as client, client.pipeline(transaction=False) as pipe:
        for _ in range(300):
            pipe.lpush(task_queue(ProxyId(own)), b"x" * 200_000)
        with suppress(*cut):  # it may be cut off before it is through
            pipe.execute()
        note = wait_for("it is cut off", lambda: site.json("proxy", "show", "flood")["state_note"])
        assert "it filled the broker" in note
        with pytest.raises(cut):
            client.ping()
    with server_client(site) as server:
        wait_for("its queue is gone", lambda: not server.exists(task_queue(ProxyId(own))))
    assert "it filled the broker" in site.vmhaul("doctor", "--json").stdout
    assert site.proxy_is_online("default")


def test_nobody_is_let_in_without_a_login(site: Up, tmp_path: Path) -> None:
    directory, _ = enrolled(site, "lock", tmp_path)
    enrolment = load_enrolment(directory)
    assert enrolment is not None
    url = redis_client_url(broker_login(directory, enrolment).broker_url)
    parts = urlsplit(url)
    bare = url.replace(f"{parts.username}:{parts.password}@", "")
    for wrong in (bare, url.replace(str(parts.password), "0" * 64)):
        with redis.Redis.from_url(wrong) as client, pytest.raises(redis.exceptions.AuthenticationError):
            client.ping()


def test_secrets_of_an_attempt_that_it_does_not_hold(site: Up, tmp_path: Path) -> None:
    directory, own = enrolled(site, "curious", tmp_path)
    enrolment = load_enrolment(directory)
    assert enrolment is not None
    identity = load_or_create_identity(directory)
    clock = time.time
    keys = Opener(ProxyId(own), lambda _: None, clock)

    request: Any = SecretsRequest(task_id=TaskId("t"), attempt=Attempt(1))

    def ask(name: str, key: SigningKey) -> None:
        client = ServerClient(
            lambda: enrolment.server_url,
            Sealer(name, key, clock),
            keys,
            PrivateKey.generate(),
            trust=server_trust(directory),
        )
        with closing(client):
            client.secrets(request)

    with pytest.raises(LeaseRefusedError, match="does not hold"):
        ask(own, identity.signing)
    # In the name of another, or with another key.
    with pytest.raises(LeaseRefusedError, match="signature is wrong"):
        ask(default_id(site), identity.signing)
    with pytest.raises(LeaseRefusedError, match="signature is wrong"):
        ask(own, SigningKey.generate())
    assert SERVER not in own


class Impostor:
    """Somebody on the way, with a certificate of his own, who passes on the true authority, shows his, or both."""

    def __init__(self, directory: Path, ca_pem: str, *, and_own: bool = False) -> None:
        directory.mkdir()
        self.asked: list[str] = []
        outer = self
        own = make_certificate(directory / "own.pem")
        if and_own:
            ca_pem += ssl.DER_cert_to_PEM_cert(own.der)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", str(len(ca_pem)))
                self.end_headers()
                self.wfile.write(ca_pem.encode())

            def do_POST(self) -> None:
                outer.asked.append(self.path)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = own.server_context()
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def test_somebody_in_between_learns_nothing(site: Up, tmp_path: Path) -> None:
    token = parse_join_token(site.json("proxy", "add", "met")["join_token"])
    own_pem = ssl.DER_cert_to_PEM_cert(make_certificate(tmp_path / "x.pem").der)
    true_pem = (site.data / "tls" / "ca.pem").read_text()
    stranger, silent = "is not the server of this join token", "does not answer"
    for number, (shown, and_own, said) in enumerate(
        (
            (own_pem, False, stranger),
            (true_pem, False, silent),
            (true_pem, True, f"{stranger}|{silent}"),
        )
    ):
        impostor = Impostor(tmp_path / f"i{number}", shown, and_own=and_own)
        try:
            text = JoinToken(
                name=token.name,
                server_urls=(impostor.url,),
                ca_sha256=token.ca_sha256,
                secret=token.secret,
            ).text()
            with pytest.raises((EnrolmentError, ServerUnavailableError), match=said):
                join(tmp_path / f"met{number}", text)
            # The token was not sent: nothing but the public certificate was asked for.
            assert impostor.asked == ["/ca.pem"]
        finally:
            impostor.close()
    # It is still good.
    assert join(tmp_path / "met", token.text()).name == "met"
