"""Errors of botocore in the package's words; see `object_errors` for what must not be in them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pipeline.errors import PipelineError, StoragePermissionError, StorageUnavailableError
from pipeline.storage.object_errors import Scrubber, translate_code

_STATUS_CODES = {"404": "NoSuchKey", "412": "PreconditionFailed", "403": "AccessDenied"}
"""What a HEAD has instead of a word."""


@contextlib.contextmanager
def translate_botocore(doing: str, where: str, scrub: Scrubber) -> Iterator[None]:
    """Turns botocore's errors into the package's."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    failed: PipelineError
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        message = str(error.response.get("Error", {}).get("Message", "")) or str(error)
        code = _STATUS_CODES.get(code, code)
        failed = translate_code(code, status, scrub(f"{code}: {message}"), doing, where)
    except NoCredentialsError:
        failed = StoragePermissionError(
            f"{doing} in {where}: no keys were given, and this machine has none from its cloud; give keys"
        )
    except BotoCoreError as error:
        failed = StorageUnavailableError(
            f"{doing} in {where}: {scrub(str(error))}; look at the storage and the network, then run again"
        )
    else:
        return
    raise failed from None
