"""Immutability of a repository in a local directory: the immutable attribute, set and taken off by the
program vmhaul-keeper, which runs as root and which nobody here can tell to take it off.

`proxy_worker.keeper_server` has the protocol.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import threading
from contextlib import suppress
from typing import Any, Final

from pipeline.errors import (
    ObjectNotFoundError,
    PermanentPipelineError,
    StoragePermissionError,
    StorageUnavailableError,
)
from pipeline.storage.base import checked_name

OPTION: Final = "?keeper="
TIMEOUT_S: Final = 60.0
_GET_FLAGS: Final = 0x80086601  # FS_IOC_GETFLAGS of linux/fs.h
_IMMUTABLE: Final = 0x10


def split_location(location: str) -> tuple[str, str]:
    """Directory and keeper's socket of `directory?keeper=socket`; the socket is empty where none is named.

    Raises PermanentPipelineError for a socket that is no absolute path.
    """
    directory, option, socket_path = location.partition(OPTION)
    if option and not socket_path.startswith("/"):
        raise PermanentPipelineError(
            f"location {location!r}: keeper= must be the absolute path of vmhaul-keeper's socket"
        )
    return directory, socket_path


def is_immutable(fd: int) -> bool:
    """Whether an open file has the immutable attribute; False where there is no such thing."""
    try:
        (flags,) = struct.unpack("@l", fcntl.ioctl(fd, _GET_FLAGS, bytes(8)))
    except OSError:
        return False
    return bool(flags & _IMMUTABLE)


class KeeperRetention:
    """Retention by way of the keeper. May be used by several threads; connects with the first call."""

    def __init__(self, socket_path: str, directory: str) -> None:
        self._socket_path = socket_path
        self._directory = os.path.normpath(directory)
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None

    def keep(self, name: str, until_s: float) -> None:
        self._asked({"call": "keep", **self._object(name), "until": until_s})

    def kept_until_s(self, name: str) -> float:
        return float(self._asked({"call": "until", **self._object(name)})["until"])

    def release_due(self) -> int:
        """Let the keeper release what is due by its own clock; how many objects that were."""
        return int(self._asked({"call": "release"})["released"])

    def close(self) -> None:
        with self._lock:
            self._drop()

    def _object(self, name: str) -> dict[str, str]:
        return {"root": self._directory, "name": checked_name(name)}

    def _asked(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            try:
                answer = self._exchanged(request)
            except (OSError, ValueError) as error:
                self._drop()
                raise StorageUnavailableError(
                    f"vmhaul-keeper at {self._socket_path} does not answer: {error}; is it running, and is "
                    "this user in its group?"
                ) from error
        if "error" not in answer:
            return answer
        message = f"vmhaul-keeper: {answer.get('message')}"
        match answer["error"]:
            case "missing":
                raise ObjectNotFoundError(message)
            case "refused":
                raise StoragePermissionError(message)
            case _:
                raise StorageUnavailableError(message)

    def _exchanged(self, request: dict[str, Any]) -> dict[str, Any]:
        line = json.dumps(request).encode() + b"\n"
        if self._connection is not None:
            # The keeper may have been started again meanwhile, or have closed an idle connection.
            with suppress(OSError, ValueError):
                return self._once(self._connection, line)
            self._drop()
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.settimeout(TIMEOUT_S)
        self._connection.connect(self._socket_path)
        return self._once(self._connection, line)

    @staticmethod
    def _once(connection: socket.socket, line: bytes) -> dict[str, Any]:
        connection.sendall(line)
        data = b""
        while not data.endswith(b"\n"):
            part = connection.recv(65536)
            if not part:
                raise ConnectionResetError("it closed the connection")
            data += part
        answer = json.loads(data)
        if not isinstance(answer, dict):
            raise ValueError("an answer that is no object")  # noqa: TRY004 - told like every broken answer
        return answer

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
