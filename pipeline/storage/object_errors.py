"""Errors of object storage in the package's words.

What the libraries say holds addresses with signatures or tokens in them; so their text is cut down before it
goes into a message, and their exceptions are never chained: a logged traceback would print them whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from obstore import exceptions as obstore_errors

from pipeline.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    PermanentPipelineError,
    PipelineError,
    StorageFullError,
    StorageMissingError,
    StoragePermissionError,
    StorageUnavailableError,
)

MAX_TEXT: Final = 300
MIN_SECRET_CHARS: Final = 6
_CODE: Final = re.compile(r"<Code>([A-Za-z0-9]+)</Code>")
_MESSAGE: Final = re.compile(r"<Message>([^<]{1,200})")
_QUERY: Final = re.compile(r"\?[^\s\"')>]*")
_SIGNED: Final = re.compile(r"(?i)\b(signature|sig|credential|authorization|token)[=:]\s*[^\s,&\"']+")
_STATUS: Final = re.compile(r"(?i)status:?\s*(?:code:?\s*)?(\d{3})|\b(\d{3}) [A-Z][a-z]+")

_MISSING_PLACE: Final = frozenset({"NoSuchBucket", "ContainerNotFound", "AccountNotFound"})
_DENIED: Final = frozenset(
    {
        "AccessDenied", "AllAccessDisabled", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken",
        "InvalidToken", "AuthenticationFailed", "AuthorizationFailure", "AuthorizationPermissionMismatch",
        "AccountProblem", "TokenRefreshRequired", "RequestTimeTooSkewed", "Forbidden",
    }
)  # fmt: skip
_FULL: Final = frozenset(
    {
        "QuotaExceeded",
        "InsufficientStorage",
        "EntityTooLarge",
        "AccountBeingCreated",
        "XAmzQuotaExceeded",
    }
)
_EXISTS: Final = frozenset(
    {"PreconditionFailed", "BlobAlreadyExists", "ConditionNotMet", "BlobImmutableDueToPolicy"}
)
_NOT_FOUND: Final = frozenset({"NoSuchKey", "BlobNotFound", "NoSuchVersion", "NoSuchUpload"})
_NOT_NOW: Final = frozenset(
    {"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "ServerBusy", "OperationAborted",
     "ConditionalRequestConflict", "ThrottlingException", "OperationTimedOut"}
)  # fmt: skip
PRECONDITION_FAILED: Final = 412
SERVER_ERROR: Final = 500
TOO_MANY: Final = 429
INSUFFICIENT_STORAGE: Final = 507
HTTP_STATUS_DENIED: Final = frozenset({401, 403})


class Scrubber:
    """Takes out of a text what must not be read in a log."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = sorted(
            (secret for secret in secrets if len(secret) >= MIN_SECRET_CHARS), key=len, reverse=True
        )

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = _SIGNED.sub(r"\1=***", _QUERY.sub("?...", text))
        text = " ".join(text.split())
        return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "..."


def code_of(text: str) -> str:
    """The store's own word for what went wrong; empty when it said none."""
    match = _CODE.search(text)
    return match[1] if match else ""


def translate_obstore(error: Exception, doing: str, where: str, scrub: Scrubber) -> PipelineError:
    """The package's error for one of obstore (or of the built-in errors that it raises)."""
    text = str(error)
    code = code_of(text)
    match = _STATUS.search(text)
    status = int(match[1] or match[2]) if match else 0
    message = _MESSAGE.search(text)
    reason = f"{code}: {message[1]}" if code and message else code or text
    if isinstance(error, FileNotFoundError):
        code = code or "NoSuchKey"
    elif isinstance(error, obstore_errors.AlreadyExistsError | obstore_errors.PreconditionError):
        code = "PreconditionFailed"
    elif isinstance(
        error,
        obstore_errors.PermissionDeniedError | obstore_errors.UnauthenticatedError | PermissionError,
    ):
        code = "AccessDenied"
    return translate_code(code, status, scrub(reason), doing, where)


def translate_code(code: str, status: int, reason: str, doing: str, where: str) -> PipelineError:
    """The package's error for a store's word and HTTP status. `reason` is scrubbed already."""
    what = f"{doing} in {where}: {reason}"
    if code in _MISSING_PLACE:
        return StorageMissingError(f"{what}; create the bucket or correct the location")
    if code in _FULL or status == INSUFFICIENT_STORAGE:
        return StorageFullError(f"{what}; free space or raise the quota, then run again")
    if code in _EXISTS or (not code and status == PRECONDITION_FAILED):
        return ObjectExistsError(f"{what}; objects are never replaced")
    if code in _NOT_FOUND:
        return ObjectNotFoundError(f"{what}; the object is missing from the storage")
    if code in _DENIED or status in HTTP_STATUS_DENIED:
        return StoragePermissionError(
            f"{what}; check the keys, what they may do in this bucket, and this machine's clock"
        )
    if code in _NOT_NOW or not status or status >= SERVER_ERROR or status == TOO_MANY:
        return StorageUnavailableError(f"{what}; look at the storage and the network, then run again")
    return PermanentPipelineError(f"{what}; the storage refuses the request (HTTP {status})")
