"""Small files of a VM (nvram) over the server's /folder door."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

import httpx

from transports.errors import ObjectGoneError, PermanentTransportError, TransientTransportError
from transports.vsphere.devices import split_path
from transports.vsphere.session import Session

# An nvram file has a few hundred KiB; anything much larger is no such file.
MAX_FILE_BYTES: Final = 16 << 20


def get_file(session: Session, path: str, datacenter_path: str) -> bytes:
    """Content of "[ds] dir/file". ObjectGoneError when it does not exist, PermanentTransportError when it
    is refused or too large.
    """
    with session.http() as client:
        answer = client.get(
            _url(path), params=_params(path, datacenter_path), headers=_headers(session)
        )
        _check(answer, path, "read")
        if len(answer.content) > MAX_FILE_BYTES:
            raise PermanentTransportError(
                f"{path} has {len(answer.content)} bytes: too large to be kept"
            )
        return answer.content


def put_file(session: Session, path: str, datacenter_path: str, content: bytes) -> None:
    with session.http() as client:
        answer = client.put(
            _url(path),
            params=_params(path, datacenter_path),
            headers={**_headers(session), "Content-Type": "application/octet-stream"},
            content=content,
        )
        _check(answer, path, "write")


def _url(path: str) -> str:
    return "/folder/" + quote(split_path(path)[1])


def _params(path: str, datacenter_path: str) -> dict[str, str]:
    params = {"dsName": split_path(path)[0]}
    return {"dcPath": datacenter_path, **params} if datacenter_path else params


def _headers(session: Session) -> dict[str, str]:
    return {"Cookie": session.cookie_header()}


def _check(answer: httpx.Response, path: str, doing: str) -> None:
    if answer.is_success:
        return
    if answer.status_code == httpx.codes.NOT_FOUND:
        raise ObjectGoneError(f"cannot {doing} {path}: there is no such file or folder")
    error = TransientTransportError if answer.is_server_error else PermanentTransportError
    raise error(
        f"cannot {doing} {path}: the server answered {answer.status_code};"
        " check the account's privilege Datastore.FileManagement"
    )
