"""Messages to JSON and back, strictly.

A message decodes only when every field has its type, every enum value is known and the
`schema_version` is one that this release speaks. A field that is not known is refused in orders (an
order half understood must not be carried out) and ignored in reports (an older server may listen to a
newer proxy).
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any, Final, TypeVar, cast

from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from proxy_worker.contracts.base64url import decode_base64url, encode_base64url
from proxy_worker.contracts.messages import (
    SCHEMA_VERSION,
    BackupDiskOrder,
    ConnectionsReport,
    CopyDiskOrder,
    DatastoresAnswer,
    DatastoresRequest,
    HeartbeatReport,
    LeaseAnswer,
    LeasesHeld,
    PresentAnswer,
    PresentRequest,
    ProgressReport,
    RateOrder,
    RescanOrder,
    RestoreDiskOrder,
    ResultAck,
    ResultReport,
    SealedSecrets,
    SecretsRequest,
    TaskKind,
    TaskRequest,
    TaskSecrets,
    WithdrawAnswer,
    WithdrawRequest,
)

Message = (
    TaskRequest
    | LeaseAnswer
    | LeasesHeld
    | ResultAck
    | SealedSecrets
    | HeartbeatReport
    | ProgressReport
    | ResultReport
    | SecretsRequest
    | ConnectionsReport
    | DatastoresAnswer
    | DatastoresRequest
    | PresentAnswer
    | PresentRequest
    | RateOrder
    | RescanOrder
    | WithdrawAnswer
    | WithdrawRequest
)
"""Everything that travels in an envelope of its own."""

MESSAGE_TYPES: Final[Mapping[str, type[Any]]] = {
    cls.__name__: cls
    for cls in (
        TaskRequest,
        LeaseAnswer,
        LeasesHeld,
        ResultAck,
        SealedSecrets,
        HeartbeatReport,
        ProgressReport,
        ResultReport,
        SecretsRequest,
        ConnectionsReport,
        DatastoresAnswer,
        DatastoresRequest,
        PresentAnswer,
        PresentRequest,
        RateOrder,
        RescanOrder,
        WithdrawAnswer,
        WithdrawRequest,
    )
}

REPORTS: Final = frozenset({HeartbeatReport, ProgressReport, ResultReport, ConnectionsReport})
"""Classes in which unknown fields are ignored, also in the values nested in them."""

KNOWN_VERSIONS: Final = frozenset({SCHEMA_VERSION})

_INT_END: Final = 1 << 63
"""What a database can be asked with."""

T = TypeVar("T")


class MessageError(Exception):
    """A message that must not be acted on. The text says what was wrong with it, never its content."""


class UnknownVersionError(MessageError):
    """Written by a release that this one does not understand."""


def canonical_json(value: Any) -> bytes:
    """The one byte form of a JSON value: sorted keys, no blanks, UTF-8; NaN and infinity refused."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def to_json(value: Any) -> dict[str, Any]:
    """Body of a message or an order as JSON values."""
    if not is_dataclass(value) or isinstance(value, type):
        raise TypeError(f"{type(value).__name__} is no message")
    return {
        item.name: _plain(getattr(value, item.name))
        for item in fields(value)
        if not (item.metadata.get("later") and getattr(value, item.name) == item.default)
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return to_json(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def from_json(cls: type[T], body: Any, *, ignore_unknown: bool | None = None) -> T:
    """Inverse of to_json. MessageError when the body is not exactly such a value.

    `ignore_unknown` is decided by the class unless it is given.
    """
    if ignore_unknown is None:
        ignore_unknown = cls in REPORTS
    return cast("T", _dataclass(cls, body, cls.__name__, ignore_unknown))


_HINTS: Final[dict[type[Any], dict[str, Any]]] = {}


def _hints(cls: type[Any]) -> dict[str, Any]:
    if cls not in _HINTS:
        _HINTS[cls] = typing.get_type_hints(cls)
    return _HINTS[cls]


def _dataclass(cls: type[Any], body: Any, where: str, ignore_unknown: bool) -> Any:
    if not isinstance(body, dict):
        raise MessageError(f"{where}: an object was expected")
    known = {item.name: item for item in fields(cls)}
    if "schema_version" in known:
        version = body.get("schema_version")
        if type(version) is not int or version not in KNOWN_VERSIONS:
            raise UnknownVersionError(
                f"{where}: schema version {version!r} is not one that this release speaks "
                f"({', '.join(map(str, sorted(KNOWN_VERSIONS)))}); update the older side"
            )
    unknown = body.keys() - known.keys()
    if unknown and not ignore_unknown:
        raise MessageError(f"{where}: unknown field {min(map(str, unknown))!r}")
    hints = _hints(cls)
    values: dict[str, Any] = {}
    for name, item in known.items():
        if name in body:
            values[name] = _value(hints[name], body[name], f"{where}.{name}", ignore_unknown)
        elif item.default is MISSING and item.default_factory is MISSING:
            raise MessageError(f"{where}: field {name!r} is missing")
    return cls(**values)


def _value(kind: Any, value: Any, where: str, ignore_unknown: bool) -> Any:
    while hasattr(kind, "__supertype__"):  # NewType
        kind = kind.__supertype__
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        options = [option for option in typing.get_args(kind) if option is not type(None)]
        if value is None and len(options) < len(typing.get_args(kind)):
            return None
        if len(options) != 1:
            raise TypeError(f"{where}: a message field may be one type or None")
        return _value(options[0], value, where, ignore_unknown)
    if origin is tuple:
        if not isinstance(value, list):
            raise MessageError(f"{where}: a list was expected")
        item = typing.get_args(kind)[0]
        return tuple(
            _value(item, part, f"{where}[{n}]", ignore_unknown) for n, part in enumerate(value)
        )
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _enum(kind, value, where)
    if is_dataclass(kind):
        return _dataclass(cast("type[Any]", kind), value, where, ignore_unknown)
    found = _scalar(kind, value, where)
    if ignore_unknown and type(found) is str:
        # Texts of reports come from anywhere, damaged disks too, and PostgreSQL keeps no NUL in a text: one
        # such report would hold up those of every proxy.
        return found.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return found


def _enum(kind: type[Enum], value: Any, where: str) -> Enum:
    try:
        return kind(value)
    except ValueError:
        raise MessageError(f"{where}: {str(value)[:40]!r} is no {kind.__name__}") from None


def _scalar(kind: Any, value: Any, where: str) -> Any:
    # bool is an int to Python and must not pass for one; an int is a fine float, as in JSON.
    if kind is float and type(value) in (int, float):
        try:
            number = float(value)
        except OverflowError:
            raise MessageError(f"{where}: not a finite number") from None
        if not math.isfinite(number):
            raise MessageError(f"{where}: not a finite number")
        return number
    if kind is int and type(value) is int and not -_INT_END <= value < _INT_END:
        raise MessageError(f"{where}: a number of 64 bits was expected")
    if kind in (str, int, bool) and type(value) is kind:
        return value
    raise MessageError(f"{where}: {getattr(kind, '__name__', kind)} was expected")


def decode_order(kind: str, body: Any) -> BackupDiskOrder | RestoreDiskOrder | CopyDiskOrder:
    """The order of a task of that kind, from its JSON. MessageError when it is not one."""
    known = _enum(TaskKind, kind, "task kind")
    if known is TaskKind.BACKUP_DISK:
        return from_json(BackupDiskOrder, body)
    if known is TaskKind.COPY_DISK:
        return from_json(CopyDiskOrder, body)
    return from_json(RestoreDiskOrder, body)


# ---- secrets of one task, for one proxy -----------------------------------------------------------


def seal_secrets(secrets: TaskSecrets, sealing_key: str) -> SealedSecrets:
    """Close the secrets so that only the holder of the proxy's X25519 key (hexadecimal) opens them."""
    box = SealedBox(PublicKey(bytes.fromhex(sealing_key)))
    return SealedSecrets(
        task_id=secrets.task_id,
        attempt=secrets.attempt,
        sealed=encode_base64url(box.encrypt(canonical_json(to_json(secrets)))),
    )


def unseal_secrets(sealed: SealedSecrets, private_key: PrivateKey) -> TaskSecrets:
    """MessageError when the box is not for this key, was changed, or is about another task."""
    try:
        plain = SealedBox(private_key).decrypt(decode_base64url(sealed.sealed))
        secrets = from_json(TaskSecrets, json.loads(plain))
    except (CryptoError, ValueError, RecursionError):
        # `from None`: the exception's context would carry plain text into a traceback
        raise MessageError(
            f"secrets of task {sealed.task_id}: the box does not open with this proxy's key; "
            "enrol the proxy again if its keys were replaced"
        ) from None
    if (secrets.task_id, secrets.attempt) != (sealed.task_id, sealed.attempt):
        raise MessageError(f"secrets of task {sealed.task_id}: the box is about another task")
    return secrets
