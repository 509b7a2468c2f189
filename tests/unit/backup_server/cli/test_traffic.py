"""What `vmhaul traffic` says."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from backup_server.cli import app as cli
from backup_server.cli.door import Door


class Api:
    """Takes every rule as it is asked for."""

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        assert path == "/traffic-rules"
        shown = {"id": "1", "enabled": True, "restores": False, "encrypt": False}
        return {**shown, **body, "windows": [], "rate": "unlimited", "rate_now": "unlimited"}


@pytest.mark.parametrize(("option", "is_said"), [("--encrypt", True), ("--no-encrypt", False)])
def test_who_asks_for_encryption_hears_what_becomes_of_tasks_that_run(
    monkeypatch: pytest.MonkeyPatch, option: str, *, is_said: bool
) -> None:
    monkeypatch.setattr(Door, "api", Api())
    monkeypatch.setattr(Door, "close", lambda _: None)
    words = ["traffic", "add", "dmz", "--source", "any", "--target", "192.0.2.0/24", option]
    done = CliRunner().invoke(cli.build(), words)
    assert done.exit_code == 0
    assert ("stop in order within seconds" in done.output + done.stderr) is is_said
