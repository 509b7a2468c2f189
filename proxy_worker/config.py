"""The proxy's settings: one frozen value for the process.

`<data dir>/proxy.toml` may set what `ProxySettings` names; there is nothing that has to be set. Who the
proxy is and where its server and broker are comes from the enrolment (`enrolment.json`).
"""

from __future__ import annotations

import json
import ssl
import sys
import tomllib
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from proxy_worker.contracts.ids import ProxyId
from proxy_worker.contracts.names import with_tls_verified
from proxy_worker.errors import SetupError
from proxy_worker.trust import BROKER_CA_FILE, SERVER_CA_FILE, pinned_context
from transports import registry
from transports.base import TransportMode
from transports.machine import Machine
from transports.nfs_options import NfsClient, NfsOptions
from transports.registry import ModeOptions
from transports.vddk_options import NetworkClient, VddkOptions

SETTINGS_FILE: Final = "proxy.toml"
ENROLMENT_FILE: Final = "enrolment.json"
JOIN_TOKEN_FILE: Final = "join-token"  # noqa: S105 - a file's name
LOG_FORMATS: Final = ("console", "json")
MOVER_COMMAND: Final = (sys.executable, "-m", "proxy_worker.mover_process")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    """Seconds throughout."""

    max_tasks: int = 64
    """What the machine bears at most. How many tasks the proxy gets is said at the server."""
    heartbeat_s: float = 5.0
    progress_s: float = 1.0
    resend_s: float = 10.0
    """After which a result that was not acknowledged is sent again."""
    secrets_timeout_s: float = 120.0
    """How long a task waits for a server that does not answer before it is handed back."""
    stop_grace_s: float = 3.0
    """How long tasks may go on after SIGTERM before their movers are told to stop."""
    kill_grace_s: float = 15.0
    """How long a mover may take to stop before it is killed."""
    log_level: str = "info"
    log_format: str = "console"
    """console, or json: one object a line."""
    metrics_listen: str = ""
    """ADDRESS:PORT for figures of this worker; empty: nowhere."""
    sys_path: str = "/sys"
    """Where the kernel shows devices: another place for a proxy in a container."""
    dev_path: str = "/dev"
    vm_uuid: str = ""
    """SMBIOS UUID of this VM, where the guest cannot read its own."""
    nfs_client: str = NfsClient.AUTO.value
    """What speaks NFS: auto, library or mount."""
    nfs_connections: int = NfsOptions().connections
    """To an NFS server, for one disk."""
    network_client: str = NetworkClient.NATIVE.value
    """What reads and writes disks in the network modes: native or vddk."""
    vddk_libdir: str = ""
    """Directory of a VDDK that the user has unpacked: it has lib64/ inside."""
    vddk_plugin: str = VddkOptions().plugin
    """nbdkit's plugin, by name or by the path of its file."""
    vddk_user: str = ""
    """Account of vCenter with which VDDK logs in."""
    vddk_password_file: str = ""
    """File with its password, mode 0600."""

    def mode_options(self) -> ModeOptions:
        """ValueError for what a mode does not know."""
        return ModeOptions(
            machine=Machine(sys_path=self.sys_path, dev_path=self.dev_path, vm_uuid=self.vm_uuid),
            nfs=NfsOptions(client=NfsClient(self.nfs_client), connections=self.nfs_connections),
            vddk=VddkOptions(
                client=NetworkClient(self.network_client),
                libdir=self.vddk_libdir,
                plugin=self.vddk_plugin,
                user=self.vddk_user,
                password_file=self.vddk_password_file,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """What the server told when this proxy was taken in."""

    proxy_id: ProxyId
    name: str
    server_url: str
    server_key: str
    """Ed25519 verify key, hexadecimal."""
    broker_url: str = field(repr=False)
    """With this proxy's login."""
    more_server_urls: tuple[str, ...] = ()
    """Where the server may be asked as well, when the first does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyConfig:
    data_dir: Path
    enrolment: Enrolment
    settings: ProxySettings
    mover_command: tuple[str, ...] = MOVER_COMMAND

    def modes(self) -> tuple[TransportMode, ...]:
        """Transport modes for which the machine has all that it takes, best first. Looks at the machine."""
        offered = registry.offered_modes(self.settings.mode_options())
        return tuple(mode for mode, lacking in offered.items() if not lacking)

    @property
    def outbox_file(self) -> Path:
        return self.data_dir / "outbox.db"


def installed_version() -> str:
    """Of the vmhaul package; "unknown" when it runs from a directory that was never installed."""
    try:
        return version("vmhaul")
    except PackageNotFoundError:
        return "unknown"


def load_settings(data_dir: Path, named: Path | None = None) -> ProxySettings:
    """From the proxy's directory, or from the file `named`. SetupError names what is wrong in it."""
    path = named or data_dir / SETTINGS_FILE
    if named is None and not path.exists():
        return ProxySettings()
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SetupError(f"{path} is not valid TOML: {error}") from error
    values: dict[str, Any] = {}
    known = {item.name: type(item.default) for item in fields(ProxySettings)}
    for name, value in given.items():
        kind = known.get(name)
        if kind is None:
            raise SetupError(f"{path}: there is no setting {name!r}; known are {', '.join(known)}")
        wanted = (int, float) if kind is float else (kind,)
        if type(value) not in wanted or (kind in (int, float) and value <= 0):
            raise SetupError(f"{path}: {name} must be a {kind.__name__} above 0, not {value!r}")
        values[name] = value
    settings = ProxySettings(**values)
    if settings.log_format not in LOG_FORMATS:
        raise SetupError(
            f"{path}: log_format must be one of {', '.join(LOG_FORMATS)}, not {settings.log_format!r}"
        )
    try:
        settings.mode_options()
    except ValueError as error:
        raise SetupError(f"{path}: {error}") from error
    return settings


def load_enrolment(data_dir: Path) -> Enrolment | None:
    """None when this proxy was not enrolled yet."""
    path = data_dir / ENROLMENT_FILE
    try:
        data = json.loads(path.read_bytes())
        return Enrolment(
            proxy_id=ProxyId(str(data["proxy_id"])),
            name=str(data["name"]),
            server_url=str(data["server_url"]),
            server_key=str(data["server_key"]),
            broker_url=str(data["broker_url"]),
            more_server_urls=tuple(str(url) for url in data.get("more_server_urls", ())),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise SetupError(
            f"{path} cannot be read ({error!r}); remove it and enrol this proxy again"
        ) from error


def local_server_url(data_dir: Path) -> str | None:
    """URL of the server in whose data directory this proxy lives; None for a proxy elsewhere.

    Read anew each time: the server may have been started on another port since.
    """
    path = data_dir.absolute().parent.parent / "run" / "server.json"
    try:
        url = json.loads(path.read_bytes())["url"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(url)


def server_trust(data_dir: Path) -> ssl.SSLContext | None:
    """What the server's door is known by; None where the machine's own authorities decide, or loopback."""
    try:
        pem = (data_dir / SERVER_CA_FILE).read_text(encoding="ascii")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(
            f"{data_dir / SERVER_CA_FILE} cannot be read ({error}); join the server again"
        ) from error
    return pinned_context(pem)


def broker_login(data_dir: Path, enrolment: Enrolment) -> Enrolment:
    """The enrolment with the file of the broker's certificate authority in the broker's URL. It is no part of
    what is stored, so that the proxy's directory may be moved.
    """
    file = data_dir / BROKER_CA_FILE
    if not enrolment.broker_url.startswith("rediss:") or not file.exists():
        # The machine's own authorities are asked. Servers of before 0.5.0 may have told a URL that does not say so.
        return replace(enrolment, broker_url=with_tls_verified(enrolment.broker_url))
    parts = urlsplit(enrolment.broker_url)
    query = [
        *(
            (name, value)
            for name, value in parse_qsl(parts.query)
            # The server says so where the authority is its own: who has a certificate of it is the broker (see
            # trust.py). Another's authority signs for others too, and the name tells them apart.
            if not name.startswith("ssl_") or name == "ssl_check_hostname"
        ),
        ("ssl_cert_reqs", "required"),
        ("ssl_ca_certs", str(file.absolute())),
    ]
    return replace(enrolment, broker_url=urlunsplit(parts._replace(query=urlencode(query))))


def local_enrolment(data_dir: Path, enrolment: Enrolment) -> Enrolment:
    """The enrolment as it holds today for a proxy that lives in its server's data directory.

    The directory may have been moved or copied since, or the broker moved out of it; the old address
    may even lead to the broker of the directory that this one is a copy of.
    """
    path = data_dir.absolute().parent.parent / "run" / "local-proxies.json"
    try:
        told = json.loads(path.read_bytes())
        ours = [item for item in told["proxies"] if item["id"] == enrolment.proxy_id]
        urls = [str(item.get("broker_url") or told.get("broker_url") or "") for item in ours]
    except (OSError, ValueError, KeyError, TypeError):
        return enrolment
    return replace(enrolment, broker_url=urls[0]) if urls and urls[0] else enrolment


def local_log_format(data_dir: Path) -> str:
    """That of the server in whose data directory this proxy lives; empty for a proxy elsewhere."""
    path = data_dir.absolute().parent.parent / "run" / "local-proxies.json"
    try:
        told = json.loads(path.read_bytes())["log_format"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return told if told in LOG_FORMATS else ""
