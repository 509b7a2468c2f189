"""Locations of object storage: what a URL names, without secrets.

`s3://bucket/prefix?endpoint=&region=&virtual_host=`, `az://container/prefix?account=&endpoint=`,
`gs://bucket/prefix?endpoint=`. For all: `ca_file=` (certificates that are trusted besides the system's),
`allow_http=true` (an endpoint without TLS that is not this machine), `quota=` (what may be used; the
storage itself tells nobody), `anonymous=true` (no credentials at all).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from pipeline.errors import PermanentPipelineError

COMMON_OPTIONS: Final = frozenset({"endpoint", "ca_file", "allow_http", "quota", "anonymous"})
_CONTAINER: Final = re.compile(r"[a-z0-9][a-z0-9._-]{1,221}")
_PREFIX: Final = re.compile(r"([A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*)?")
_SIZE: Final = re.compile(r"(\d+)([KMGTP]i?B?|B)?", re.IGNORECASE)
_UNITS: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


class StorageKind(StrEnum):
    S3 = "s3"
    AZURE = "az"
    GOOGLE = "gs"


OPTIONS: Final = {
    StorageKind.S3: COMMON_OPTIONS | {"region", "virtual_host", "conditional_put"},
    StorageKind.AZURE: COMMON_OPTIONS | {"account"},
    StorageKind.GOOGLE: COMMON_OPTIONS,
}


class BadLocationError(PermanentPipelineError):
    """The location cannot be used as it is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectLocation:
    """What a location says."""

    kind: StorageKind
    container: str
    """Bucket or container."""
    prefix: str
    endpoint: str = ""
    region: str = ""
    account: str = ""
    virtual_host: bool = False
    allow_http: bool = False
    anonymous: bool = False
    ca_file: str = ""
    by_versions: bool = False
    """`conditional_put=versions`: a name is taken once by counting versions afterwards, because the store
    ignores conditions in buckets with versions (Ceph's gateway up to release 16 does)."""
    quota_bytes: int = 0
    """0: none was given."""
    text: str = field(compare=False)
    """As it was written; for messages."""


def is_object_location(location: str) -> bool:
    return location.partition("://")[0] in {kind.value for kind in StorageKind}


def parse_object_location(text: str) -> ObjectLocation:
    """Raises BadLocationError, which names what is wrong."""
    try:
        parts = urlsplit(text)
    except ValueError:  # not repeated: what cannot be taken apart may hold a password
        raise BadLocationError(
            "the location is no URL; write for example s3://bucket/prefix?endpoint=https://host:9000"
        ) from None
    try:
        kind = StorageKind(parts.scheme)
    except ValueError:
        raise BadLocationError(
            f"location {text!r} begins with none of s3://, az:// and gs://"
        ) from None
    if "@" in parts.netloc:
        # The location may hold a password: it is not repeated.
        raise BadLocationError(
            f"the {kind} location has a user name in it; secrets are given apart, never in a location"
        )
    prefix = parts.path.strip("/")
    if not _CONTAINER.fullmatch(parts.netloc):
        raise BadLocationError(
            f"location {text!r} names no bucket; write {kind}://bucket/prefix, the bucket in lower case"
        )
    if not _PREFIX.fullmatch(prefix) or parts.fragment:
        raise BadLocationError(
            f"location {text!r}: a prefix has letters, digits, '.', '_' and '-' between its slashes"
        )
    options = _options(kind, parts.query)
    endpoint = options.get("endpoint", "").rstrip("/")
    allow_http = _flag("allow_http", options)
    _check_endpoint(endpoint, allow_http=allow_http)
    account = options.get("account", "")
    if kind is StorageKind.AZURE and not account:
        raise BadLocationError(f"location {text!r} lacks the storage account: add ?account=NAME")
    return ObjectLocation(
        kind=kind,
        container=parts.netloc,
        prefix=prefix,
        endpoint=endpoint,
        region=options.get("region", ""),
        account=account,
        virtual_host=_flag("virtual_host", options),
        allow_http=endpoint.startswith("http://"),
        anonymous=_flag("anonymous", options),
        ca_file=options.get("ca_file", ""),
        by_versions=_by_versions(options),
        quota_bytes=_size("quota", options),
        text=text,
    )


def _options(kind: StorageKind, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in OPTIONS[kind]:
            # Not the value: somebody may have written a key there.
            raise BadLocationError(
                f"a {kind} location has no option {name!r}; there are {', '.join(sorted(OPTIONS[kind]))}, "
                "and secrets are given apart"
            )
        if name in options:
            raise BadLocationError(f"option {name!r} stands twice in the location")
        options[name] = value
    return options


def _check_endpoint(endpoint: str, *, allow_http: bool) -> None:
    if not endpoint:
        return
    try:
        parts = urlsplit(endpoint)
    except ValueError:
        parts = urlsplit("")
    if (
        parts.scheme not in {"http", "https"}
        or not parts.hostname
        or "@" in parts.netloc
        or parts.query
    ):
        raise BadLocationError("endpoint= must be an address such as https://s3.example.org:9000")
    if parts.scheme == "http" and not allow_http and not _is_loopback(parts.hostname):
        raise BadLocationError(
            f"endpoint {endpoint} has no TLS, and {parts.hostname} is another machine; "
            "use https, or add allow_http=true where the line is trusted"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _flag(name: str, options: dict[str, str]) -> bool:
    value = options.get(name, "false")
    if value not in {"true", "false"}:
        raise BadLocationError(f"{name}= must be true or false")
    return value == "true"


def _by_versions(options: dict[str, str]) -> bool:
    value = options.get("conditional_put", "etag")
    if value not in {"etag", "versions"}:
        raise BadLocationError("conditional_put= must be etag (If-None-Match, the default) or versions")
    return value == "versions"


def _size(name: str, options: dict[str, str]) -> int:
    if name not in options:
        return 0
    match = _SIZE.fullmatch(options[name])
    if match is None or not int(match[1]):
        raise BadLocationError(f"{name}= must be a size such as 500GiB or 2TB")
    unit = (match[2] or "").upper().removesuffix("B")
    base = 1024 if unit.endswith("I") else 1000
    return int(match[1]) * int(base ** _UNITS[unit.removesuffix("I")])
