"""The tables of the specification are the code's structures, byte for byte."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from pipeline.crypto import keyring
from pipeline.crypto.aead import AEAD_NAMES, NONCE_BYTES, TAG_BYTES
from pipeline.crypto.keyring import MAX_EPOCH
from pipeline.crypto.unlock import _ALPHABET, _KEY_FILE_WORD, KEY_KIND_NAMES
from pipeline.repository import format as fmt
from pipeline.repository.epochs import PROVEN_BYTES, SIGNED_BYTES
from pipeline.repository.keys import AUTHENTICATED_BYTES

SPEC = Path(__file__).parents[2] / "docs/reference/repository-format.md"
TEXT = SPEC.read_text(encoding="utf-8")


def spec_tables() -> dict[str, list[tuple[int, int, str, str]]]:
    tables: dict[str, list[tuple[int, int, str, str]]] = {}
    name = None
    for line in TEXT.splitlines():
        if marker := re.fullmatch(r"<!-- spec:(\w+) -->", line):
            name = marker[1]
            tables[name] = []
        elif name and (row := re.match(r"\|\s*(\d+) \|\s*(\d+) \| (\w+)\s*\| (\w+)\s*\|", line)):
            tables[name].append((int(row[1]), int(row[2]), row[3], row[4]))
        elif name and not line.startswith("|"):
            name = None
    return tables


TABLES = spec_tables()


def test_every_structure_has_a_table() -> None:
    in_code = {name for name, value in vars(fmt).items() if isinstance(value, struct.Struct)}
    assert in_code == set(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_table_matches_structure(name: str) -> None:
    offset = 0
    for row_offset, size, _field, code in TABLES[name]:
        assert row_offset == offset
        assert struct.calcsize("<" + code) == size
        offset += size
    structure = getattr(fmt, name)
    assert structure.format == "<" + "".join(code for *_, code in TABLES[name])
    assert structure.size == offset


def test_magics_and_numbers_are_in_the_text() -> None:
    for value in vars(fmt).values():
        if isinstance(value, bytes) and value.startswith(b"VMH"):
            assert f"`{value.decode()}`" in TEXT
    for number, name in AEAD_NAMES.items():
        assert f"| {int(number)} | `{name}`" in TEXT
        assert re.search(
            rf"`{name}`[^|]*\| 32 \| {NONCE_BYTES[number]} \| {TAG_BYTES[number]} \|", TEXT
        )
    words = {"POINT": "restore point", "WORK": "work record"}
    for kind in fmt.SealedKind:
        word = words.get(kind.name, kind.name.lower().replace("_", " "))
        assert re.search(rf"[| ,]{kind.value} {word}[ ,]", TEXT), kind
    for key_kind, name in KEY_KIND_NAMES.items():
        assert re.search(rf"[| ,]{key_kind.value} {name}[ ,]", TEXT), key_kind
    for feature in fmt.KNOWN_FEATURES:
        assert f"feature `{feature}`" in TEXT
    assert f"the first {AUTHENTICATED_BYTES} bytes" in TEXT
    assert f"the first {PROVEN_BYTES} bytes" in TEXT
    assert f"the first {SIGNED_BYTES} bytes" in TEXT
    assert f"`{_ALPHABET}`" in TEXT
    assert f"`{_KEY_FILE_WORD}`" in TEXT
    assert str(MAX_EPOCH) in TEXT


def test_key_contexts_are_in_the_text() -> None:
    contexts = [value for name, value in vars(keyring).items() if name.startswith("CONTEXT_")]
    assert len(contexts) == 10
    for context in contexts:
        assert f"`{context}`" in TEXT


def test_authenticated_part_of_a_key_object_ends_before_the_wrapped_key() -> None:
    wrapped = next(row for row in TABLES["KEY_FILE"] if row[2] == "wrapped")
    assert wrapped[0] == AUTHENTICATED_BYTES
