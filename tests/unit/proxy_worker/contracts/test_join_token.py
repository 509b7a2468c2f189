from __future__ import annotations

import hashlib
import json

import pytest

from proxy_worker.contracts.base64url import encode_base64url
from proxy_worker.contracts.join_token import (
    PREFIX,
    JoinToken,
    JoinTokenError,
    is_join_token,
    parse_join_token,
)

TOKEN = JoinToken(
    name="px1",
    server_urls=("https://192.0.2.1:8471", "https://backup.example:8471"),
    ca_sha256="ab" * 32,
    secret="vmhj_secret",
)


def as_text(value: object) -> str:
    data = json.dumps(value).encode()
    return PREFIX + encode_base64url(data + hashlib.sha256(data).digest()[:4])


def test_the_text_says_all_of_it_and_survives_broken_lines() -> None:
    text = TOKEN.text()
    assert is_join_token(text)
    assert parse_join_token(text) == TOKEN
    assert parse_join_token(f"  {text[:50]}\n {text[50:]}\r\n") == TOKEN
    assert "secret" not in repr(TOKEN)


@pytest.mark.parametrize("cut", range(len(PREFIX), len(TOKEN.text())))
def test_no_part_of_it_passes_for_the_whole(cut: int) -> None:
    with pytest.raises(JoinTokenError, match="not whole"):
        parse_join_token(TOKEN.text()[:cut])


def test_a_changed_letter_is_seen() -> None:
    text = TOKEN.text()
    for at in range(len(PREFIX), len(text)):
        changed = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
        with pytest.raises(JoinTokenError, match="not whole"):
            parse_join_token(changed)


@pytest.mark.parametrize("text", ["", "vmhj_secret", PREFIX.upper() + "abc", PREFIX + "a" * 5000])
def test_what_is_no_token_is_called_so(text: str) -> None:
    with pytest.raises(JoinTokenError, match="no join token"):
        parse_join_token(text)


@pytest.mark.parametrize(
    "change",
    [
        {"urls": []},
        {"urls": "https://x"},
        {"urls": [1]},
        {"ca": "AB"},
        {"ca": 1},
        {"secret": ""},
        {"secret": None},
        {"name": None},
    ],
)
def test_another_form_is_called_so(change: dict[str, object]) -> None:
    value = {"name": "p", "urls": ["https://x"], "ca": "", "secret": "s", **change}
    with pytest.raises(JoinTokenError, match="form that this release"):
        parse_join_token(as_text(value))


def test_json_of_another_shape() -> None:
    for value in ([], 1, {"name": "p"}):
        with pytest.raises(JoinTokenError, match="form that this release"):
            parse_join_token(as_text(value))
