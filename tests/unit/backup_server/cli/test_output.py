"""What people are shown comes from proxies, vCenters and guests, who may mean ill."""

from __future__ import annotations

import re
import sys

import pytest
import typer
from rich.console import Console

from backup_server.cli import output
from backup_server.cli.bars import Bars
from backup_server.cli.door import errors_on_stderr
from backup_server.cli.exits import CliError

EVIL = "db01\x1b]0;owned\x07\x1b[2J\x08 \x9b31m\u202egnp.exe"
SHOWN = "db01 gnp.exe"


def test_nothing_that_is_printed_plays_with_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.say(EVIL)
    output.note(EVIL)
    output.facts([("name", EVIL)])
    output.table(("name",), [(EVIL,), ([EVIL, EVIL],)])
    output.table(("name",), [], empty=EVIL)
    with pytest.raises(typer.Exit), errors_on_stderr():
        raise CliError(EVIL)
    printed = capsys.readouterr()
    for text in (printed.out, printed.err):
        assert text.replace("\n", "").isprintable()
        assert SHOWN in text
    assert printed.out.count(SHOWN) == 6
    assert printed.err == f"{SHOWN}\nvmhaul: {SHOWN}\n"


def test_bars_show_nothing_else_either(capsys: pytest.CaptureFixture[str]) -> None:
    bars = Bars()
    bars.say(EVIL, level="error")
    assert capsys.readouterr().out == f"{SHOWN}\n"
    task = {"id": "t", "state": "running", "label": EVIL, "proxy": EVIL, "progress": {"phase": EVIL}}
    bars.show({"kind": "backup", "job": EVIL, "vms": [{"name": EVIL, "tasks": [task]}]})
    for shown in bars._progress.tasks:
        assert (shown.description + str(shown.fields.get("note", ""))).isprintable()
    assert len(bars._progress.tasks) == 2


def test_what_people_write_stays(capsys: pytest.CaptureFixture[str]) -> None:
    text = "M\u00fcller \u65e5\u672c \u06a9\u0645\u200c\u06a9\ttab\nsecond line"
    output.say(text)
    assert capsys.readouterr().out == f"{text}\n"


def _on_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    screen = Console(file=sys.stdout, width=columns, force_terminal=True, no_color=True, markup=False)
    monkeypatch.setattr(output, "console", lambda: screen)


ROW = ("default", "online", ["storage-snapshot", "direct-nfs", "nbd"], 12345678)
NAMES = ("name", "state", "modes", "free")


def test_words_stay_whole_where_they_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _on_a_terminal(monkeypatch, 50)
    output.table(NAMES, [ROW], right=["free"])
    printed = capsys.readouterr().out
    for word in ("default", "online", "storage-snapshot,", "direct-nfs,", "12345678"):
        assert word in printed
    assert max(map(len, re.sub(r"\x1b\[[0-9;]*m", "", printed).splitlines())) <= 50


def test_a_table_that_does_not_fit_is_shown_row_below_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _on_a_terminal(monkeypatch, 40)
    output.table(NAMES, [ROW, ("px2", "offline", None, 0)], right=["free"])
    assert capsys.readouterr().out == (
        "name   default\nstate  online\nmodes  storage-snapshot, direct-nfs, nbd\nfree   12345678\n"
        "\n"
        "name   px2\nstate  offline\nmodes  -\nfree   0\n"
    )
