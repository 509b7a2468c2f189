"""Base64 in the URL alphabet without padding, decoded strictly."""

from __future__ import annotations

import base64


def encode_base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode_base64url(text: str) -> bytes:
    """ValueError unless `text` is the one way of writing those bytes."""
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if encode_base64url(data) != text:
        # spare bits or padding of its own: two texts for one message would slip past comparisons
        raise ValueError("not canonical base64url")
    return data
