"""Who may see the console: signed cookies, one-time links, form tokens.

The cookie says until when it holds, signed with a key derived from the API's token: it survives a
restart of the server, and a new token ends all logins. A one-time link's code is kept as a hash.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from transports.vsphere.model import Secret

COOKIE: Final = "vmhaul_login"
LOGIN_S: Final = 12 * 3600
LINK_S: Final = 600
MAX_LINKS: Final = 100


class Logins:
    """Thread-safe. `clock` gives aware UTC times."""

    def __init__(self, token: Secret, clock: Callable[[], datetime]) -> None:
        self._token = token
        self._clock = clock
        self._key = hashlib.blake2b(
            b"console", key=token.reveal().encode()[:64], digest_size=32
        ).digest()
        self._links: dict[str, datetime] = {}
        self._lock = threading.Lock()

    def new_link(self) -> dict[str, Any]:
        """{path, expires_at} of a link that opens the console once."""
        code = secrets.token_urlsafe(24)
        expires_at = self._clock() + timedelta(seconds=LINK_S)
        with self._lock:
            self._drop_old()
            self._links[_hash(code)] = expires_at
        shown = expires_at.astimezone(UTC).isoformat().replace("+00:00", "Z")
        return {"path": f"/login?code={code}", "expires_at": shown}

    def redeem(self, code: str) -> bool:
        """Whether the code opens the console; it does so once."""
        with self._lock:
            expires_at = self._links.pop(_hash(code), None)
        return expires_at is not None and expires_at > self._clock()

    def token_is_right(self, token: str) -> bool:
        return hmac.compare_digest(token.strip().encode(), self._token.reveal().encode())

    def new_cookie(self) -> str:
        """Text of a new login: expiry, random part, signature, joined by dots."""
        expires = int(self._clock().timestamp()) + LOGIN_S
        body = f"{expires}.{secrets.token_urlsafe(12)}"
        return f"{body}.{self._sign('login', body)}"

    def is_valid(self, cookie: str) -> bool:
        body, _, signature = cookie.rpartition(".")
        expires = body.partition(".")[0]
        if not hmac.compare_digest(signature.encode(), self._sign("login", body).encode()):
            return False
        return expires.isdecimal() and int(expires) > self._clock().timestamp()

    def form_token(self, cookie: str) -> str:
        """What a form of this login must carry: another site cannot know it."""
        return self._sign("form", cookie)

    def form_is_right(self, cookie: str, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self.form_token(cookie).encode())

    def _sign(self, what: str, text: str) -> str:
        return hmac.new(self._key, f"{what}:{text}".encode(), hashlib.sha256).hexdigest()

    def _drop_old(self) -> None:
        now = self._clock()
        self._links = {code: at for code, at in self._links.items() if at > now}
        while len(self._links) >= MAX_LINKS:
            self._links.pop(next(iter(self._links)))


def _hash(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()
