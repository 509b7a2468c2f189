"""The signed wrapping of every message: who, to whom, when, once.

Text form: `base64url(json) "." base64url(signature)`; the JSON is
`{"v", "from", "to", "at", "nonce", "type", "body"}` in canonical form and the Ed25519 signature is over
its bytes. A proxy signs with the key that it enrolled and is named by its proxy id; the server is named
"server".
"""

from __future__ import annotations

import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from proxy_worker.contracts.base64url import decode_base64url, encode_base64url
from proxy_worker.contracts.codec import (
    MESSAGE_TYPES,
    Message,
    MessageError,
    UnknownVersionError,
    canonical_json,
    from_json,
    to_json,
)
from proxy_worker.contracts.messages import ResultReport

Clock = Callable[[], float]
"""Unix time in seconds."""

SERVER: Final = "server"
ENVELOPE_VERSION: Final = 1
MAX_AGE_S: Final = 300.0
MAX_TEXT_BYTES: Final = 1 << 20
"""Longer texts are refused unread; the largest message, an order, has a few kilobytes."""
NONCE_BYTES: Final = 16
_LATEST_S: Final = 1 << 53
"""A time beyond is none; JSON has integers that no float can hold."""
AGELESS: Final = frozenset({ResultReport})
"""Sent again until acknowledged and guarded by attempt and state, so neither age nor repeat matters."""


class UnknownSenderError(MessageError):
    """Nobody of that name has a key here."""


class ForgedMessageError(MessageError):
    """The signature is not the sender's."""


class WrongAddresseeError(MessageError):
    """Meant for somebody else."""


class StaleMessageError(MessageError):
    """Outside of the age window; `age_s` is by how much (negative: from the future)."""

    def __init__(self, text: str, *, age_s: float) -> None:
        super().__init__(text)
        self.age_s = age_s


class ReplayedMessageError(MessageError):
    """Seen before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    sender: str
    addressee: str
    at_s: float
    nonce: str
    message: Message


class NonceCache:
    """Which nonces were seen, for as long as the age window can let them in. Safe for threads."""

    def __init__(self, *, keep_s: float = 2 * MAX_AGE_S, max_entries: int = 1_000_000) -> None:
        self._keep_s = keep_s
        self._max_entries = max_entries
        self._seen: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def first_time(self, nonce: str, now_s: float) -> bool:
        with self._lock:
            while self._seen:
                oldest = next(iter(self._seen))
                if self._seen[oldest] + self._keep_s > now_s and len(self._seen) < self._max_entries:
                    break
                del self._seen[oldest]
            if nonce in self._seen:
                return False
            self._seen[nonce] = now_s
            return True


class Sealer:
    """Makes envelopes in one name."""

    def __init__(self, name: str, key: SigningKey, clock: Clock) -> None:
        self._name = name
        self._key = key
        self._clock = clock

    def seal(self, message: Message, *, to: str) -> str:
        body = {
            "v": ENVELOPE_VERSION,
            "from": self._name,
            "to": to,
            "at": self._clock(),
            "nonce": secrets.token_hex(NONCE_BYTES),
            "type": type(message).__name__,
            "body": to_json(message),
        }
        data = canonical_json(body)
        return f"{encode_base64url(data)}.{encode_base64url(self._key.sign(data).signature)}"


class Opener:
    """Opens envelopes addressed to one name; every refusal is a MessageError."""

    def __init__(
        self,
        name: str,
        keys: Callable[[str], VerifyKey | None],
        clock: Clock,
        *,
        max_age_s: float = MAX_AGE_S,
    ) -> None:
        """`keys` answers the verify key of a sender, or None for a stranger."""
        self._name = name
        self._keys = keys
        self._clock = clock
        self._max_age_s = max_age_s
        self._nonces = NonceCache(keep_s=2 * max_age_s)

    def open(self, text: str | bytes, *, expect: Collection[type[Any]]) -> Envelope:
        """The envelope, when it is genuine, for us, fresh, new, and holds one of `expect`."""
        data, signature = _split(text)
        outer = _outer(data)
        sender = outer["from"]
        key = self._keys(sender)
        if key is None:
            raise UnknownSenderError(f"message from {sender!r}: no key is known for that sender")
        try:
            key.verify(data, signature)
        except (BadSignatureError, ValueError):
            raise ForgedMessageError(f"message from {sender!r}: the signature is wrong") from None
        if outer["v"] != ENVELOPE_VERSION:
            raise UnknownVersionError(
                f"message from {sender!r}: envelope version {outer['v']!r} is not known here"
            )
        if outer["to"] != self._name:
            raise WrongAddresseeError(f"message from {sender!r} is for {outer['to']!r}, not for us")
        cls = MESSAGE_TYPES.get(outer["type"])
        if cls is None or cls not in expect:
            raise MessageError(f"message from {sender!r}: a {outer['type'][:40]!r} has no place here")
        message = from_json(cls, outer["body"])
        if cls not in AGELESS:
            self._check_fresh(outer, sender)
        return Envelope(
            sender=sender,
            addressee=outer["to"],
            at_s=outer["at"],
            nonce=outer["nonce"],
            message=message,
        )

    def _check_fresh(self, outer: dict[str, Any], sender: str) -> None:
        now_s = self._clock()
        age_s = now_s - outer["at"]
        if abs(age_s) > self._max_age_s:
            raise StaleMessageError(
                f"{outer['type']} from {sender!r} is {age_s:.0f} s old; at most "
                f"{self._max_age_s:.0f} s are let in. If this goes on, compare the clocks of both "
                "machines",
                age_s=age_s,
            )
        if not self._nonces.first_time(f"{sender} {outer['nonce']}", now_s):
            raise ReplayedMessageError(f"{outer['type']} from {sender!r} came a second time")


def _split(text: str | bytes) -> tuple[bytes, bytes]:
    if len(text) > MAX_TEXT_BYTES:
        raise MessageError(f"a message of {len(text)} bytes is longer than any that exists")
    try:
        if isinstance(text, bytes):
            text = text.decode("ascii")
        body, signature = text.split(".")
        return decode_base64url(body), decode_base64url(signature)
    except ValueError:
        raise MessageError("not a signed message: two base64url parts were expected") from None


def _outer(data: bytes) -> dict[str, Any]:
    try:
        outer = json.loads(data)
        if canonical_json(outer) != data:
            raise MessageError("not a signed message: the JSON is not in canonical form")
    except (ValueError, RecursionError):
        raise MessageError("not a signed message: no JSON inside") from None
    kinds = {"v": int, "from": str, "to": str, "nonce": str, "type": str, "body": dict}
    if (
        not isinstance(outer, dict)
        or outer.keys() != {*kinds, "at"}
        or any(type(outer[name]) is not kind for name, kind in kinds.items())
        or type(outer["at"]) not in (int, float)
        or abs(outer["at"]) > _LATEST_S
    ):
        raise MessageError("not a signed message: the envelope has another shape")
    return outer
