"""What a hostile machine says neither fills the server nor plays with a terminal."""

from __future__ import annotations

import pytest

from backup_server.deploy import said
from backup_server.deploy.look import look
from backup_server.deploy.machine import Ran
from backup_server.deploy.places import Places


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain\ttext\nand more", "plain\ttext\nand more"),
        ("gr\u00fc\u00df dich".encode(), "gr\u00fc\u00df dich"),
        (b"\x1b[31mred\x1b[0m", "red"),
        (b"\x1b[2J\x1b[1;1Hcleared", "cleared"),
        (b"\x1b]0;a title\x07text", "text"),
        (b"\x1b]52;c;cm0gLXJmIC8=\x1b\\text", "text"),
        (b"\x1bPq#0;2;0;0;0\x1b\\text", "text"),
        ("\u009b31mred".encode(), "red"),
        ("\u009d0;a title\u009ctext".encode(), "text"),
        (b"10 %\r20 %\r\ndone", "10 %\n20 %\ndone"),
        (b"a\x00b\x08c\x7fd", "abcd"),
        ("abc\u202edcb\u2066x".encode(), "abcdcbx"),
        (b"\x1b]0;never ended\nnext line", "\nnext line"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"x" * 10_000 + b"\ny", "x" * 4096 + "\ny"),
    ],
)
def test_nothing_is_left_that_a_terminal_would_obey(raw: bytes, shown: str) -> None:
    assert said.clean(raw) == shown


def test_the_end_is_kept_and_no_more() -> None:
    kept = said.Kept(1000)
    for number in range(10_000):
        kept.add(b"line %d\n" % number)
        assert len(kept._data) < 3000
    text = kept.text()
    assert text.endswith("line 9998\nline 9999\n")
    assert (len(text), kept.total_bytes > 80_000) == (1000, True)


class Liar:
    """Says what no machine says."""

    name = "liar"

    def __init__(self, said: str) -> None:
        self._said = said

    def run(self, words: object, **given: object) -> Ran:
        del words, given
        return Ran(status=0, output=self._said, errors="")


@pytest.mark.parametrize(
    "line",
    [
        "free=",
        "free= /opt",
        "clock=" + "9" * 200_000,
        "clock=\u0667",
        "system=" + "x" * 900_000,
        "=",
        "\n",
    ],
)
def test_facts_that_are_none_break_nothing(line: str) -> None:
    facts = look(Liar(line), Places(), lambda: 1000.0)
    assert len(str(facts.shape())) < 3000
    assert facts.problems
