"""The one text with which a machine joins a server: where it is, what it can be known by, a secret.

Text form: `vmhaul-join-` and base64url of the JSON followed by the first four bytes of its SHA-256, so that a
text that lost its end or a letter on the way is called so, and not a wrong secret.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Final

from proxy_worker.contracts.base64url import decode_base64url, encode_base64url

PREFIX: Final = "vmhaul-join-"
CHECKSUM_BYTES: Final = 4
MAX_TEXT_CHARS: Final = 4096
"""Far above what a token with many addresses takes; longer texts are refused unread."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class JoinTokenError(ValueError):
    """The text is no join token, or not the whole of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinToken:
    """What the text says."""

    name: str
    """Of the proxy at its server."""
    server_urls: tuple[str, ...]
    """Where its calls go, to be tried in this order."""
    ca_sha256: str
    """Of the certificate (DER) of the authority that the server's certificates are signed by, hexadecimal;
    empty: the URLs are known by other means (loopback, or a certificate that the machine trusts)."""
    secret: str = field(repr=False)
    """Works once."""

    def text(self) -> str:
        data = json.dumps(
            {"name": self.name, "urls": self.server_urls, "ca": self.ca_sha256, "secret": self.secret},
            separators=(",", ":"),
        ).encode()
        return PREFIX + encode_base64url(data + _checksum(data))


def parse_join_token(text: str) -> JoinToken:
    """JoinTokenError says what is wrong with the text, never the text itself: it holds a secret.

    Blanks and line ends anywhere in it are left out: terminals and mails break long lines.
    """
    text = "".join(text.split())
    if not text.startswith(PREFIX):
        raise JoinTokenError(f"this is no join token: one begins with {PREFIX}")
    if len(text) > MAX_TEXT_CHARS:
        raise JoinTokenError("this is no join token: it is longer than any")
    try:
        raw = decode_base64url(text.removeprefix(PREFIX))
    except ValueError:
        raise _not_whole() from None
    data, checksum = raw[:-CHECKSUM_BYTES], raw[-CHECKSUM_BYTES:]
    if not data or checksum != _checksum(data):
        raise _not_whole()
    return _from_json(data)


def is_join_token(text: str) -> bool:
    """Whether it wants to be one; parse it to know."""
    return text.strip().startswith(PREFIX)


def _from_json(data: bytes) -> JoinToken:
    try:
        found = json.loads(data)
        token = JoinToken(
            name=found["name"],
            server_urls=tuple(found["urls"]),
            ca_sha256=found["ca"],
            secret=found["secret"],
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _another_form() from None
    texts = (token.name, token.ca_sha256, token.secret, *token.server_urls)
    if (
        not isinstance(found["urls"], list)
        or not all(isinstance(one, str) for one in texts)
        or not (token.server_urls and token.secret)
    ):
        raise _another_form()
    if token.ca_sha256 and not _SHA256.fullmatch(token.ca_sha256):
        raise _another_form()
    return token


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:CHECKSUM_BYTES]


def _not_whole() -> JoinTokenError:
    return JoinTokenError(
        "the join token is not whole: a part of it was lost or changed on the way; copy it again, "
        "from its first letter to its last"
    )


def _another_form() -> JoinTokenError:
    return JoinTokenError(
        "the join token has a form that this release does not know; "
        "install the release of the server on this machine"
    )
