"""A proxy's whole life on a machine that is reached over a real SSH server, without systemd there."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.up.running import Up, wait_for
from tests.support.deploy_target import PASSWORD, PYTHON, USER, Target, deploy_target
from tests.support.ports import free_port

PLACE = "/var/lib/vmhaul-proxy"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with deploy_target(tmp_path_factory.mktemp("deploy")) as running:
        yield running


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A server with a door for proxies of other machines, on loopback."""
    options = ["--no-flower", "--proxies-listen", f"127.0.0.1:{free_port()}"]
    options += ["--proxies-broker-port", str(free_port())]
    with Up(tmp_path_factory.mktemp("server") / "data", *options) as running:
        yield running


def _login(target: Target) -> list[str]:
    return ["--host-key", target.host_key, "--python", PYTHON]


def _add(up: Up, target: Target, name: str, *options: str) -> subprocess.CompletedProcess[str]:
    return up.vmhaul(
        "proxy", "add", f"{USER}@127.0.0.1:{target.port}", "--name", name, "--password-stdin", *_login(target), *options,
        stdin=PASSWORD + "\n",
    )  # fmt: skip


def _worker(target: Target) -> psutil.Process | None:
    found = [
        one
        for one in target.processes("-m proxy_worker --data", PLACE)
        if "supervise" not in " ".join(one.cmdline())
    ]
    return found[0] if found else None


def _shown(up: Up, name: str) -> dict[str, Any]:
    shown: dict[str, Any] = up.json("proxy", "show", name)
    return shown


def _nothing_left(target: Target) -> None:
    for path in ("/opt/vmhaul", PLACE, "/etc/init.d/vmhaul-proxy"):
        assert not target.has(path), path
    assert "vmhaul:" not in target.run("cat", "/etc/passwd")
    assert not target.processes("proxy_worker")


def test_a_proxy_is_installed_upgraded_restarted_and_removed(up: Up, target: Target) -> None:
    # -- add: by a user whose sudo asks for a password
    added = _add(up, target, "px1", "--keep-credentials", "--slots", "3")
    assert added.returncode == 0, added.stderr
    assert "enrolment: " in added.stderr
    assert PASSWORD not in added.stdout + added.stderr
    proxy = _shown(up, "px1")
    assert (proxy["state"], proxy["slots"], proxy["server"]) == ("online", 3, "127.0.0.1")
    assert proxy["looked_at"]
    worker = _worker(target)
    assert worker is not None
    assert worker.username() not in {"root", USER}
    effective = next(
        line for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines() if "CapEff" in line
    )
    # CAP_DAC_OVERRIDE (bit 1) and CAP_NET_BIND_SERVICE (bit 10), nothing else of root's
    assert int(effective.split()[1], 16) == 1 << 1 | 1 << 10
    server = up.json("server", "show", "127.0.0.1")
    assert server["credentials_kept"]
    assert PASSWORD not in json.dumps(server)
    assert server["proxies"][0]["release"] in target.run("readlink", "/opt/vmhaul/current")

    # -- it is added once, and its server is not forgotten while it is there
    again = _add(up, target, "px2")
    assert again.returncode == 1
    assert f"there is a proxy already in {PLACE}" in again.stderr
    assert up.vmhaul("server", "remove", "127.0.0.1").returncode == 1

    # -- a crash: its supervisor starts it again
    worker.send_signal(signal.SIGKILL)
    wait_for("another worker runs", lambda: (_worker(target) or worker).pid != worker.pid)

    # -- upgrade: the release that is there counts as another one
    old = server["proxies"][0]["release"]
    target.run("mv", f"/opt/vmhaul/releases/{old}", "/opt/vmhaul/releases/0.0.1-old")
    target.run("ln", "-sfn", "releases/0.0.1-old", "/opt/vmhaul/current")
    before = _worker(target)
    assert before is not None
    upgraded = up.vmhaul("proxy", "upgrade", "px1")
    assert upgraded.returncode == 0, upgraded.stderr
    after = _worker(target)
    assert after is not None
    assert after.pid != before.pid
    assert target.run("readlink", "/opt/vmhaul/current").strip() == f"releases/{old}"
    assert target.has("/opt/vmhaul/releases/0.0.1-old")
    assert _shown(up, "px1")["enabled"]
    assert "has this release already" in up.vmhaul("proxy", "upgrade", "--all").stderr

    # -- drained, and removed with all that was made; the server stays managed
    drained = up.json("proxy", "drain", "px1")["items"][0]
    assert (drained["enabled"], drained["running"]) == (False, 0)
    removed = up.vmhaul("proxy", "remove", "px1")
    assert removed.returncode == 0, removed.stderr
    _nothing_left(target)
    assert up.vmhaul("proxy", "show", "px1").returncode == 1
    assert up.json("server", "show", "127.0.0.1")["proxies"] == []
    kinds = [(one["kind"], one["state"]) for one in up.json("operation", "list")["items"]]
    assert kinds[:2] == [("remove", "success"), ("upgrade", "success")]
    log = (up.data / "log" / "server.log").read_text()
    assert "operation.step" in log
    assert PASSWORD not in log


def test_what_fails_leaves_nothing_behind(up: Up, target: Target) -> None:
    known = {one["name"] for one in up.json("server", "list")["items"]}
    target.run(
        "sh", "-c",
        "printf '#!/bin/sh\\nif [ \"$1 $2\" = \"-m venv\" ]; then echo no space left on device >&2; exit 1; fi\\n"
        "exec /opt/ready/base/bin/python3 \"$@\"\\n' > /opt/broken-python && chmod 755 /opt/broken-python",
    )  # fmt: skip
    failed = up.vmhaul(
        "proxy", "add", f"root@127.0.0.1:{target.port}", "--name", "px9", "--host-key", target.host_key,
        "--key-file", str(target.private_key), "--python", "/opt/broken-python",
    )  # fmt: skip
    assert failed.returncode == 4
    assert "no space left on device" in failed.stderr
    assert "what was done there was undone" in failed.stderr
    _nothing_left(target)
    assert up.vmhaul("proxy", "show", "px9").returncode == 1
    assert {one["name"] for one in up.json("server", "list")["items"]} == known


def test_a_machine_is_known_by_its_key_before_anything_is_sent(up: Up, target: Target) -> None:
    where = f"{USER}@127.0.0.1:{target.port}"
    other = up.vmhaul(
        "proxy", "add", where, "--host-key", "SHA256:AAAA", "--password-stdin", stdin=PASSWORD + "\n"
    )
    assert other.returncode == 1
    assert f"shows the host key {target.host_key}" in other.stderr
    asked = up.vmhaul("proxy", "add", where, "--password-stdin", stdin=PASSWORD + "\n")
    assert asked.returncode == 2
    assert target.host_key in asked.stderr
    wrong = up.vmhaul("proxy", "add", where, "--accept-host-key", "--password-stdin", stdin="guessed\n")
    assert wrong.returncode == 1
    assert "refused the login of ops" in wrong.stderr
    _nothing_left(target)
