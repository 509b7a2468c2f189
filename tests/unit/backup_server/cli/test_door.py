"""Which server a command goes to: options beside it, before the noun, and the environment."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from backup_server.cli import app as cli
from backup_server.cli.door import Door, with_door

SHOWN = ("data", "server", "token_file")


def shown(*arguments: str) -> dict[str, str]:
    """What the command `show` was told."""
    seen: dict[str, str] = {}

    def show(door: Door) -> None:
        """Show."""
        seen.update({name: str(getattr(door, name)) for name in SHOWN})

    app = typer.Typer()
    app.callback()(cli.root)
    app.command("show")(with_door(show))
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return seen


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMHAUL_DATA", "/environment")
    monkeypatch.delenv("VMHAUL_SERVER", raising=False)
    monkeypatch.delenv("VMHAUL_TOKEN_FILE", raising=False)


def test_the_environment_holds_when_nothing_is_typed() -> None:
    assert shown("show")["data"] == "/environment"


def test_what_is_typed_before_the_noun_beats_the_environment() -> None:
    assert shown("--data", "/typed", "show")["data"] == "/typed"


def test_what_stands_beside_the_command_beats_both() -> None:
    assert shown("--data", "/before", "show", "--data", "/beside")["data"] == "/beside"


def test_a_typed_data_directory_beats_a_server_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VMHAUL_SERVER", "http://far")
    monkeypatch.setenv("VMHAUL_TOKEN_FILE", "/token")
    assert shown("show")["server"] == "http://far"
    assert shown("--data", "/typed", "show")["server"] == "None"
    assert shown("show", "--data", "/typed")["server"] == "None"
    assert shown("--data", "/typed", "show", "--server", "http://near")["server"] == "http://near"


def test_up_heeds_what_stands_before_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[dict[str, object]] = []
    monkeypatch.setattr("backup_server.cli.up._become_supervisor", started.append)
    CliRunner().invoke(cli.build(), ["--data", str(tmp_path), "up"])
    assert [given["data_dir"] for given in started] == [str(tmp_path)]


def test_an_interrupted_command_says_so_with_its_own_status() -> None:
    def wait(door: Door) -> None:
        """Wait."""
        del door
        raise KeyboardInterrupt

    app = typer.Typer()
    app.callback()(cli.root)
    app.command("wait")(with_door(wait))
    result = CliRunner().invoke(app, ["wait"])
    assert (result.exit_code, "interrupted" in result.output) == (130, True)
