"""What `vmhaul up` was asked, and how its children are told."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

HOST: Final = "127.0.0.1"
PORT: Final = 8470
FLOWER_PORT: Final = 5555
UP_FILE: Final = "up.json"
"""In `run/`, mode 0600: settings for the children. They hold passwords, so they are not arguments."""


class UpError(Exception):
    """`vmhaul up` cannot start; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    data_dir: Path
    host: str = HOST
    port: int = PORT
    flower: bool = True
    flower_port: int = FLOWER_PORT
    database: str = field(default="", repr=False)
    broker: str = field(default="", repr=False)
    slots: int | None = None

    @property
    def run_dir(self) -> Path:
        return self.data_dir / "run"

    @property
    def log_dir(self) -> Path:
        return self.data_dir / "log"

    def settings(self) -> dict[str, Any]:
        """What differs from the settings' defaults, by the settings' names."""
        given: dict[str, Any] = {
            "host": self.host,
            "port": self.port,
            "flower": self.flower,
            "flower_port": self.flower_port if self.flower else 0,
        }
        if self.database:
            given["database"] = self.database
        if self.broker:
            given["broker"] = self.broker
        if self.slots:
            given["default_proxy_slots"] = self.slots
        return given


def parse_listen(text: str) -> tuple[str, int]:
    """ADDRESS:PORT or [IPV6]:PORT; UpError otherwise. Port 0 takes a free one."""
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65535:  # noqa: PLR2004
        raise UpError(f"--listen '{text}' is not ADDRESS:PORT, as in {HOST}:{PORT}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def port_is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def free_port(host: str) -> int:
    """A port that nobody listens on at this moment."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def resolve(given: Mapping[str, Any]) -> UpOptions:
    """Options of the command line with free ports filled in. UpError when a named port is taken."""
    host, port = parse_listen(given["listen"]) if given.get("listen") else (HOST, PORT)
    if port == 0:
        port = free_port(host)
    elif not port_is_free(host, port):
        raise UpError(
            f"{host}:{port} is in use or not an address of this machine: "
            "choose another with --listen ADDRESS:PORT"
        )
    flower = bool(given.get("flower", True))
    return UpOptions(
        data_dir=Path(given["data_dir"]),
        host=host,
        port=port,
        flower=flower,
        flower_port=_flower_port(given.get("flower_port")) if flower else 0,
        database=str(given.get("database") or ""),
        broker=str(given.get("broker") or ""),
        slots=given.get("slots"),
    )


def _flower_port(wanted: int | None) -> int:
    if wanted is None:
        return FLOWER_PORT if port_is_free(HOST, FLOWER_PORT) else free_port(HOST)
    if not port_is_free(HOST, wanted):
        raise UpError(
            f"port {wanted} for Flower is in use: choose another with --flower-port or --no-flower"
        )
    return wanted


def write_private(path: Path, value: Any) -> None:
    """Replace a JSON file that only its owner may read."""
    temporary = path.with_name(f".{path.name}.new")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """The file's value, or None when it is not there or not yet whole."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
