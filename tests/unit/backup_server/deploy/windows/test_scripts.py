"""The scripts are PowerShell by a grammar of its own, and are called with the parameters that they declare."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import tree_sitter_powershell
from tree_sitter import Language, Node, Parser

import backup_server.deploy.windows
from backup_server.deploy.windows import steps
from backup_server.deploy.windows.places import WindowsPlaces, release_of
from backup_server.deploy.windows.winrm import script_text

SCRIPTS = sorted((Path(backup_server.deploy.windows.__file__).parent / "scripts").glob("*.ps1"))
PARSER = Parser(Language(tree_sitter_powershell.language()))


def _all(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from _all(child)


def _parameters(text: str) -> set[str]:
    """Of the script itself, not of functions in it."""
    root = PARSER.parse(text.encode()).root_node
    [block] = [node for node in root.children if node.type == "param_block"] or [None]
    if block is None:
        return set()
    return {
        one.text.decode().removeprefix("$")
        for node in _all(block)
        if node.type == "script_parameter"
        for one in node.children
        if one.type == "variable" and one.text is not None
    }


def _calls() -> dict[str, set[str]]:
    """Each script that `steps.py` calls, with the names of what it gives."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(Path(steps.__file__).read_text())):
        if not isinstance(node, ast.Call) or getattr(node.func, "id", "") != "must":
            continue
        name = node.args[1]
        assert isinstance(name, ast.Constant)
        given = {str(one.arg) for one in node.keywords} - {"advice", "timeout_s"}
        assert found.setdefault(str(name.value), given) == given
    return found


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.stem))
def test_it_is_powershell(path: Path) -> None:
    text = script_text(path.stem)
    broken = [
        node for node in _all(PARSER.parse(text.encode()).root_node) if node.is_error or node.is_missing
    ]
    assert broken == []
    # Windows PowerShell reads files without a mark in the machine's own code page.
    assert text.isascii()
    assert "Invoke-Expression" not in text


def test_the_grammar_sees_what_is_broken() -> None:
    root = PARSER.parse(b"param([string] $Path)\nif (Test-Path $Path {\n").root_node
    assert root.has_error


def test_each_script_is_called_with_what_it_declares() -> None:
    calls = _calls()
    assert set(calls) == {path.stem for path in SCRIPTS} - {"common"}
    for name, given in calls.items():
        assert _parameters(script_text(name)) == given, name


def test_no_script_puts_the_token_on_a_command_line() -> None:
    uses = [line for line in script_text("enrol").splitlines() if "$Token" in line]
    assert [line.split("-Text ")[1].split()[0] for line in uses[1:]] == ["$Token"]
    assert [path.stem for path in SCRIPTS if "$Token" in path.read_text()] == ["enrol"]


@pytest.mark.parametrize(
    "path",
    [
        "C:\\",
        "C:\\vmhaul",
        "\\\\server\\share\\vmhaul",
        "C:\\Program Files\\..\\Windows",
        'C:\\Program Files\\vm"haul',
        "C:\\Program Files\\vmhaul\\",
        "C:\\Program Files\\$env:x",
        "C:\\a\\b\n",
        "/opt/vmhaul",
    ],
)
def test_places_that_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="two levels deep"):
        WindowsPlaces(install_dir=path)


def test_other_places() -> None:
    places = WindowsPlaces.of({"install_dir": "D:\\Backup tools\\vmhaul-2", "service": "vmhaul-2"})
    assert places.python("0.5.0-abc") == (
        "D:\\Backup tools\\vmhaul-2\\releases\\0.5.0-abc\\venv\\Scripts\\python.exe"
    )
    assert WindowsPlaces.of(places.values()) == places
    assert release_of(places.python("0.5.0-abc")) == "0.5.0-abc"
    assert release_of("C:\\Windows\\System32\\svchost.exe") == ""
    with pytest.raises(ValueError, match="cannot be chosen"):
        WindowsPlaces(user="vmhaul")
