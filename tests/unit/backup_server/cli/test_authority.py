"""`vmhaul proxy new-authority`: on purpose only, and not beside a server that runs."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from typer.testing import CliRunner

from backup_server import server_certificates
from backup_server.cli import app as cli
from backup_server.up.lock import UpLock


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.build(), ["proxy", "new-authority", *words])
    return result.exit_code, result.output


def test_a_new_authority_is_made_on_purpose(tmp_path: Path) -> None:
    tls, now = tmp_path / "tls", datetime.now(UTC)
    server_certificates.ensure(tls, ("x",), now)
    before = server_certificates.ca_sha256(tls, now)
    code, said = run("--data", str(tmp_path))
    assert (code, "confirm with --yes" in said) == (2, True)
    (tmp_path / "run").mkdir()
    with UpLock(tmp_path / "run"):
        code, said = run("--data", str(tmp_path), "--yes")
    assert (code, "vmhaul is up already" in said) == (1, True)
    assert server_certificates.ca_sha256(tls, now) == before
    code, said = run("--data", str(tmp_path), "--yes", "--json")
    assert code == 0, said
    answer = json.loads(said)
    assert answer["ca_sha256"] == server_certificates.ca_sha256(tls, now) != before
    assert [Path(file).name.partition(".2")[0] for file in answer["kept"]] == [
        "ca.key", "ca.pem", "door.key", "door.pem",
    ]  # fmt: skip


def test_json_may_stand_before_the_noun(tmp_path: Path) -> None:
    server_certificates.ensure(tmp_path / "tls", ("x",), datetime.now(UTC))
    words = ["--json", "proxy", "new-authority", "--yes", "--data", str(tmp_path)]
    result = CliRunner().invoke(cli.build(), words)
    assert json.loads(result.output)["ca_sha256"]


def test_a_directory_that_is_no_servers_is_left_alone(tmp_path: Path) -> None:
    code, said = run("--data", str(tmp_path), "--yes")
    assert (code, "has no certificate authority" in said) == (1, True)
    assert list(tmp_path.iterdir()) == []
