"""`vmhaul up` from its start to its end: processes, lock, restarts, signals."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.integration.up.running import Up, run, wait_for
from tests.support.ports import free_port


def test_everything_runs_and_nothing_is_left(own_up: Up) -> None:
    wait_for("the default proxy is online", lambda: own_up.proxy_is_online("default"))
    assert own_up.child("valkey-server") or own_up.child("redis-server")
    assert own_up.child("backup_server.main")
    assert own_up.child("proxy_worker", "--data")
    assert own_up.stop(signal.SIGINT) == 0
    assert own_up.left_over() == []
    assert len(own_up.seen) >= 4
    assert not (own_up.data / "run" / "server.json").exists()
    assert "vmhaul is down." in own_up.output


def test_sigterm_stops_it_as_well(own_up: Up) -> None:
    assert own_up.stop(signal.SIGTERM) == 0
    assert own_up.left_over() == []


def test_nothing_outlives_a_supervisor_that_is_killed(own_up: Up) -> None:
    assert own_up.stop(signal.SIGKILL) == -signal.SIGKILL
    assert own_up.left_over() == []
    again = Up(own_up.data)
    with again:
        wait_for("the proxy is online again", lambda: again.proxy_is_online("default"))
    assert again.left_over() == []


def test_a_child_that_dies_comes_back(own_up: Up) -> None:
    wait_for("the default proxy is online", lambda: own_up.proxy_is_online("default"))
    for words in (("backup_server.main",), ("valkey-server",)):
        before = own_up.child(*words)
        assert before
        before.kill()

        def back(words: tuple[str, ...] = words, old: psutil.Process = before) -> bool:
            now = own_up.child(*words)
            return now is not None and now.pid != old.pid

        wait_for(f"{words[0]} is back", back)
    wait_for("the API answers", lambda: own_up.vmhaul("proxy", "list").returncode == 0)
    assert "it starts again in 1 s" in own_up.output


def test_the_data_directory_is_for_its_owner(up: Up) -> None:
    assert stat.S_IMODE(up.data.stat().st_mode) == 0o700
    secret = (
        "server.key",
        "server-signing.key",
        "api-token",
        "run/server.json",
        "run/up.json",
        "vmhaul.db",
    )
    for name in secret:
        assert stat.S_IMODE((up.data / name).stat().st_mode) == 0o600, name
    socket = up.data / "run" / "broker.sock"
    assert stat.S_IMODE(socket.stat().st_mode) == 0o700


def test_only_the_console_listens(up: Up) -> None:
    ports = {
        connection.laddr.port
        for process in up.tree()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert ports == {int(up.url.rpartition(":")[2])}


def test_the_token_stands_in_no_command_line(up: Up) -> None:
    for process in up.tree():
        assert up.token not in " ".join(process.cmdline())
        assert up.token not in " ".join(process.environ().values())


def test_the_second_up_says_who_is_first(up: Up) -> None:
    assert up.process
    done = run("up", "--data", str(up.data), "--listen", "127.0.0.1:0", "--no-flower")
    assert done.returncode == 1
    assert f"process {up.process.pid} at {up.url}" in done.stderr
    assert up.vmhaul("proxy", "list").returncode == 0, "the first one must not have been disturbed"


def test_a_port_that_is_taken(up: Up, tmp_path: Path) -> None:
    taken = up.url.rpartition("//")[2]
    done = run("up", "--data", str(tmp_path / "other"), "--listen", taken, "--no-flower")
    assert done.returncode == 1
    assert "--listen" in done.stderr


def test_a_database_that_does_not_answer(tmp_path: Path) -> None:
    secret = tmp_path / "database-url"
    secret.write_text("postgresql+psycopg://vmhaul:hunter2@127.0.0.1:1/vmhaul\n")
    done = run(
        "up", "--data", str(tmp_path / "data"), "--listen", "127.0.0.1:0", "--no-flower",
        "--database", f"@{secret}",
    )  # fmt: skip
    assert done.returncode == 1
    assert "the server did not start" in done.stderr
    assert "does not answer" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout
    assert "hunter2" not in (tmp_path / "data" / "log" / "server.log").read_text()


def test_a_directory_that_may_not_be_used(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    done = run("up", "--data", str(file / "data"), "--no-flower")
    assert done.returncode == 1
    assert "--data" in done.stderr


def test_flower_shows_the_worker_on_loopback(tmp_path: Path) -> None:
    import httpx

    port = free_port()
    with Up(tmp_path / "data", "--flower-port", str(port)) as up:
        assert up.json("version")["server"]["flower_url"] == f"http://127.0.0.1:{port}"

        def answers() -> bool:
            try:
                return httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code == 200
            except httpx.TransportError:
                return False

        def shows_the_worker() -> bool:
            page = httpx.get(f"http://127.0.0.1:{port}/workers", trust_env=False, timeout=30)
            return page.status_code == 200 and "default@vmhaul" in page.text

        wait_for("Flower answers", answers)
        wait_for("Flower shows the proxy by its name", shows_the_worker)
        flower = up.child("backup_server.up.flower")
        assert flower
        listening = {c.laddr for c in flower.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        assert listening == {("127.0.0.1", port)}
    assert up.left_over() == []


def test_idle_memory_stays_below_the_promise(up: Up) -> None:
    """Design: the embedded platform takes less than 600 MB when idle."""
    total = sum(process.memory_info().rss for process in up.tree())
    assert total < 600_000_000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_during_the_start(tmp_path: Path, number: signal.Signals) -> None:
    from tests.integration.up.running import VMHAUL

    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(VMHAUL),
                "up",
                "--data",
                str(tmp_path / "data"),
                "--listen",
                "127.0.0.1:0",
                "--no-flower",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ},
        )
    wait_for("the broker is started", lambda: psutil.Process(process.pid).children())
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    assert process.wait(60) == 0, (tmp_path / "log").read_text()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
