"""What `vmhaul up` was asked, and how its children are told."""

from __future__ import annotations

import json
import os
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from backup_server.doors import SETTINGS_FILE, parse_door
from backup_server.errors import SettingsError

HOST: Final = "127.0.0.1"
PORT: Final = 8470
FLOWER_PORT: Final = 5555
FLOWER_FILE: Final = "flower.json"
"""In `run/`, mode 0600: the broker as Flower reaches it, written by the server."""
BROKER_PORT: Final = 8472
"""Of the embedded broker, for proxies on other machines."""
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
    proxies_host: str = ""
    """Where the door for proxies on other machines listens; empty: there is none."""
    proxies_port: int = 0
    proxies_broker_port: int = 0
    """Of the embedded broker, for the same proxies."""
    proxies_names: str = ""

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
        if self.proxies_host:
            host = f"[{self.proxies_host}]" if ":" in self.proxies_host else self.proxies_host
            given["proxies_listen"] = f"{host}:{self.proxies_port}"
            given["proxies_broker_port"] = self.proxies_broker_port
        if self.proxies_names:
            given["proxies_names"] = self.proxies_names
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
    given = {**_door_in_file(Path(given["data_dir"])), **given}
    proxies_host, proxies_port, proxies_broker_port = _proxies_door(given)
    return UpOptions(
        proxies_host=proxies_host,
        proxies_port=proxies_port,
        proxies_broker_port=proxies_broker_port,
        proxies_names=str(given.get("proxies_names") or ""),
        data_dir=Path(given["data_dir"]),
        host=host,
        port=port,
        flower=flower,
        flower_port=_flower_port(given.get("flower_port")) if flower else 0,
        database=str(given.get("database") or ""),
        broker=str(given.get("broker") or ""),
        slots=given.get("slots"),
    )


def _door_in_file(data_dir: Path) -> dict[str, Any]:
    """What the settings file says of the proxies' door: the broker, which is started here, is a part of it."""
    try:
        told = tomllib.loads((data_dir / SETTINGS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UpError(f"{data_dir / SETTINGS_FILE} cannot be read: {error}") from error
    names = ("proxies_listen", "proxies_broker_port", "proxies_names")
    return {name: told[name] for name in names if name in told}


def _proxies_door(given: Mapping[str, Any]) -> tuple[str, int, int]:
    """Address and the two ports of the door for proxies on other machines; ("", 0, 0) without one."""
    if not given.get("proxies_listen"):
        return "", 0, 0
    try:
        door = parse_door(str(given["proxies_listen"]))
    except SettingsError as error:
        raise UpError(str(error)) from error
    broker_port = given.get("proxies_broker_port")
    broker_port = BROKER_PORT if broker_port is None else int(broker_port)
    ports: list[int] = []
    for port, what in ((door.port, "--proxies-listen"), (broker_port, "--proxies-broker-port")):
        if given.get("broker") and what == "--proxies-broker-port":
            ports.append(0)  # the broker listens elsewhere
        elif port == 0:
            ports.append(free_port(door.host))
        elif port_is_free(door.host, port):
            ports.append(port)
        else:
            raise UpError(
                f"{door.host}:{port} is in use or not an address of this machine: choose another with {what}"
            )
    return door.host, ports[0], ports[1]


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
    write_private_text(path, json.dumps(value, indent=1) + "\n")


def write_private_text(path: Path, text: str) -> None:
    """Replace a file that only its owner may read."""
    temporary = path.with_name(f".{path.name}.new")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """The file's value, or None when it is not there or not yet whole."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
