"""The command line as a person or a program uses it, against a running platform."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.integration.up.running import VMHAUL, Up, run, wait_for


def test_help_lists_nouns_and_exit_codes() -> None:
    done = run("--help")
    assert done.returncode == 0
    for noun in (
        "vcenter",
        "repository",
        "proxy",
        "job",
        "session",
        "task",
        "restore-point",
        "restore",
    ):
        assert noun in done.stdout
    assert re.search(r"130\s+interrupted", done.stdout)


@pytest.mark.parametrize(
    "args", [["job", "fly"], ["job", "show"], ["job", "run", "x", "--nonsense"], ["up", "--slots", "0"]]
)
def test_a_command_line_that_cannot_be_read(args: list[str]) -> None:
    done = run(*args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Error" in done.stderr or "Usage" in done.stderr


def test_without_a_server(tmp_path: Path) -> None:
    done = run("job", "list", "--data", str(tmp_path))
    assert done.returncode == 5
    assert "vmhaul up --data" in done.stderr
    doctor = run("doctor", "--data", str(tmp_path), "--json")
    assert doctor.returncode == 4
    checks = {check["name"]: check for check in json.loads(doctor.stdout)["checks"]}
    assert checks["Python"]["level"] == "ok"
    assert checks["server"]["level"] == "error"


def test_doctor(up: Up) -> None:
    wait_for("the default proxy is online", lambda: up.proxy_is_online("default"))
    done = up.vmhaul("doctor")
    assert done.returncode == 3, done.stdout  # nothing has been added yet: warnings
    lines = done.stdout.splitlines()
    assert any(line.startswith("ok") and "database" in line for line in lines)
    assert any(line.startswith("ok") and "broker" in line for line in lines)
    assert any("vmhaul vcenter add" in line for line in lines)
    assert "0 errors." in lines[-1]


def test_json_is_the_api_s_shape(up: Up) -> None:
    with httpx.Client(
        base_url=up.url + "/api/v1", headers={"Authorization": f"Bearer {up.token}"}, trust_env=False
    ) as client:
        answered = client.get("/proxies").json()
    listed = up.json("proxy", "list")
    assert set(listed) == set(answered) == {"items", "next"}
    assert [set(item) for item in listed["items"]] == [set(item) for item in answered["items"]]
    shown = up.json("proxy", "show", "default")
    assert shown["id"] == answered["items"][0]["id"]


def test_options_may_stand_before_the_noun(up: Up) -> None:
    done = run("--data", str(up.data), "--json", "job", "list")
    assert json.loads(done.stdout) == {"items": [], "next": None}


def test_a_server_elsewhere(up: Up, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(up.token)
    done = run("proxy", "list", "--server", up.url, "--token-file", str(token))
    assert done.returncode == 0
    assert "default" in done.stdout
    token.write_text("wrong")
    refused = run("proxy", "list", "--server", up.url, "--token-file", str(token))
    assert refused.returncode == 1
    assert "token" in refused.stderr
    nobody = run("proxy", "list", "--server", "http://127.0.0.1:1", "--token-file", str(token))
    assert nobody.returncode == 5


def test_a_local_proxy_is_started_and_stopped(up: Up) -> None:
    done = up.vmhaul("proxy", "add", "second", "--local", "--slots", "3")
    assert done.returncode == 0, done.stderr
    wait_for("the second proxy is online", lambda: up.proxy_is_online("second"))
    assert up.json("proxy", "show", "second")["slots"] == 3
    assert up.child("proxies/second")
    changed = up.json("proxy", "edit", "second", "--slots", "1", "--description", "spare")
    assert (changed["slots"], changed["description"]) == (1, "spare")
    assert up.vmhaul("proxy", "remove", "second").returncode == 0
    wait_for("its worker is gone", lambda: up.child("proxies/second") is None)
    assert up.vmhaul("proxy", "show", "second").returncode == 1


def test_a_proxy_joins_with_its_token(up: Up, tmp_path: Path) -> None:
    added = up.json("proxy", "add", "far", "--slots", "2")
    directory = tmp_path / "far"
    wrong = run(
        "proxy",
        "join",
        "--server",
        up.url,
        "--token-stdin",
        "--data",
        str(directory),
        stdin="guessed\n",
    )
    assert wrong.returncode == 1
    joined = run(
        "proxy", "join", "--server", up.url, "--token-stdin", "--data", str(directory),
        stdin=added["join_token"] + "\n",
    )  # fmt: skip
    assert joined.returncode == 0, joined.stderr
    worker = subprocess.Popen(
        [str(VMHAUL), "proxy", "run", "--data", str(directory)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    try:
        wait_for("the proxy is online", lambda: up.proxy_is_online("far"))
    finally:
        worker.terminate()
        worker.wait(30)
    assert up.vmhaul("proxy", "remove", "far").returncode == 0


def test_a_vcenter_that_is_not_there(up: Up) -> None:
    done = up.vmhaul(
        "vcenter", "add", "lost", "127.0.0.1:1", "--user", "u", "--password-stdin", "--accept-thumbprint",
        stdin="secret\n",
    )  # fmt: skip
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr
    assert "secret" not in done.stderr
    asked = up.vmhaul("vcenter", "add", "lost", "127.0.0.1", "--user", "u")
    assert asked.returncode in {1, 2}


def test_nobody_to_ask(up: Up) -> None:
    done = up.vmhaul("repository", "add", "r", "/nowhere")
    assert done.returncode == 2
    assert "--password-stdin" in done.stderr
    job = up.vmhaul("job", "delete", "nothing")
    assert job.returncode == 2
    assert "--yes" in job.stderr


def test_a_repository_from_making_to_forgetting(up: Up, tmp_path: Path) -> None:
    password = "correct horse battery\n"
    added = up.json(
        "repository", "add", "main", str(tmp_path / "repo"), "--password-stdin", stdin=password
    )
    assert added["block_size_bytes"] == 1 << 20
    again = up.vmhaul(
        "repository", "add", "main", str(tmp_path / "two"), "--password-stdin", stdin=password
    )
    assert again.returncode == 1
    assert "exists already" in again.stderr
    checked = up.vmhaul("repository", "check", "main")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "Repository check ended: success" in checked.stdout
    assert up.vmhaul("repository", "prune", "main").returncode == 0
    sessions = up.json("session", "list")["items"]
    assert [item["kind"] for item in sessions[:2]] == ["prune", "repository-check"]
    shown = up.vmhaul("session", "show", "latest")
    assert "Prune ended: success" in shown.stdout
    followed = up.vmhaul("session", "follow", sessions[1]["id"][:8], "--json")
    assert json.loads(followed.stdout)["result"] == "success"
    assert up.vmhaul("session", "log", "latest").returncode == 0
    job = up.vmhaul("job", "create", "j", "--vcenter", "none", "--repository", "main", "--all")
    assert job.returncode == 1
    assert "none" in job.stderr
    assert up.vmhaul("repository", "remove", "main").returncode == 0
    taken = up.vmhaul(
        "repository",
        "add",
        "back",
        str(tmp_path / "repo"),
        "--import",
        "--password-stdin",
        stdin=password,
    )
    assert taken.returncode == 0, taken.stderr
    assert up.vmhaul("repository", "remove", "back").returncode == 0


def test_names_that_do_not_exist(up: Up) -> None:
    for args in (
        ["job", "show", "x"],
        ["job", "run", "x"],
        ["session", "show", "12345678"],
        ["restore-point", "show", "vm01@latest"],
        ["restore", "disk", "vm01@latest", "--disk", "1", "--to", "/nowhere/x"],
    ):
        done = up.vmhaul(*args)
        assert done.returncode == 1, args
        assert done.stderr.startswith("vmhaul: ")
        assert done.stdout == ""


def test_the_console_opens_by_its_link(up: Up) -> None:
    link = up.vmhaul("console").stdout.strip()
    assert link.startswith(up.url)
    with httpx.Client(follow_redirects=True, trust_env=False) as client:
        page = client.get(link)
        assert page.status_code == 200
        assert "Overview" in page.text
        assert client.get(up.url + "/proxies").status_code == 200
    printed = re.search(r"console\s+(http\S+)", up.output)
    assert printed
    assert "/login?code=" in printed[1]


def test_completion_is_offered() -> None:
    done = run("--show-completion", "bash", env={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"})
    assert done.returncode == 0
    assert "_VMHAUL_COMPLETE" in done.stdout
    env = {"_VMHAUL_COMPLETE": "complete_bash", "COMP_WORDS": "vmhaul rest", "COMP_CWORD": "1"}
    offered = subprocess.run(
        [str(VMHAUL)],
        env={**os.environ, **env},
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert {"restore-point", "restore"} <= set(offered.stdout.split())


def test_version(up: Up, tmp_path: Path) -> None:
    assert up.json("version")["server"]["version"]
    alone = run("version", "--data", str(tmp_path), "--json")
    assert json.loads(alone.stdout)["server"] is None
