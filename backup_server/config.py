"""The server's settings: one frozen value, from arguments, environment (`VMHAUL_...`) and a file.

`docs/reference/settings.md` describes each for people; a test compares the two.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from backup_server.doors import SETTINGS_FILE, Door, parse_door
from backup_server.errors import SettingsError
from proxy_worker.contracts.names import with_tls_verified

MIN_HISTORY_DAYS: Final = 30


def default_data_dir() -> Path:
    """`/var/lib/vmhaul` for root, else below the user's data home."""
    if os.geteuid() == 0:
        return Path("/var/lib/vmhaul")
    home = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(home) / "vmhaul"


def _zero_or_a_month(days: int) -> int:
    """What a stopped session left is taken up within two weeks."""
    if days and days < MIN_HISTORY_DAYS:
        raise ValueError(f"must be 0 (for ever) or at least {MIN_HISTORY_DAYS}")
    return days


class Settings(BaseSettings):
    """All settings of the server process. Durations in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="VMHAUL_", frozen=True, extra="forbid")

    # -- places
    data_dir: Path = Field(default_factory=default_data_dir)
    database: str = ""
    broker: Annotated[str, AfterValidator(with_tls_verified)] = ""
    accept_new_keys: bool = False

    # -- doors
    host: str = "127.0.0.1"
    port: int = Field(default=8470, ge=0, le=65535)
    proxies_listen: str = ""
    proxies_names: str = ""
    proxies_broker_port: int = Field(default=8472, ge=0, le=65535)
    broker_memory_bytes: int = Field(default=0, ge=0)
    flower: bool = True
    flower_port: int = Field(default=0, ge=0, le=65535)
    flower_broker_file: str = ""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"

    # -- proxies and tasks
    default_proxy: bool = True
    default_proxy_slots: int = Field(default=2, ge=1, le=64)
    join_token_ttl_s: float = Field(default=3600, gt=0)
    fleet_join_file: str = ""
    heartbeat_s: float = Field(default=2, gt=0)
    lease_s: float = Field(default=30, gt=0)
    proxy_offline_after_s: float = Field(default=20, gt=0)
    order_ttl_s: float = Field(default=60, gt=0)
    task_attempts: int = Field(default=4, ge=1)
    task_retry_wait_s: float = Field(default=10, ge=0)
    dispatch_interval_s: float = Field(default=1, gt=0)
    reaper_interval_s: float = Field(default=5, gt=0)
    host_nfc_streams: int = Field(default=8, ge=1)
    host_nfc_memory_bytes: int = Field(default=48 << 20, ge=1 << 20)
    nfc_stream_bytes: int = Field(default=8 << 20, ge=64 << 10)
    repository_max_tasks: int = Field(default=8, ge=1)
    datastore_max_tasks: int = Field(default=0, ge=0)
    latency_control: bool = True
    latency_stop_ms: float = Field(default=20, gt=0)
    latency_throttle_ms: float = Field(default=30, gt=0)

    # -- sessions
    engine_threads: int = Field(default=8, ge=1, le=256)
    engine_interval_s: float = Field(default=1, gt=0)
    preparing_vms: int = Field(default=4, ge=1)
    snapshots_per_datastore: int = Field(default=4, ge=1)
    step_tries: int = Field(default=5, ge=1)
    step_wait_s: float = Field(default=5, ge=0)
    snapshot_remove_tries: int = Field(default=3, ge=1)
    free_space_floor_bytes: int = Field(default=1 << 30, ge=0)
    prune_after_session: bool = True
    prune_min_age_s: float = Field(default=3600, ge=0)
    history_days: Annotated[int, AfterValidator(_zero_or_a_month)] = 400

    # -- vSphere
    keep_alive_s: float = Field(default=600, gt=0)
    inventory_max_age_s: float = Field(default=300, ge=0)
    janitor_interval_s: float = Field(default=180, gt=0)
    janitor_wait_s: float = Field(default=60, ge=0)
    janitor_wait_max_s: float = Field(default=6 * 3600, gt=0)

    # -- repository agent
    agent_timeout_s: float = Field(default=300, gt=0)
    agent_long_timeout_s: float = Field(default=7 * 86400, gt=0)

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL: `database`, or the file in the data directory."""
        return self.database or f"sqlite:///{self.data_dir / 'vmhaul.db'}"

    @property
    def host_nfc_tasks(self) -> int:
        """Disks that all proxies together may have open through one host's NFC service: as many as its
        connections allow, and as its memory for buffers does. At least one.
        """
        return max(1, min(self.host_nfc_streams, self.host_nfc_memory_bytes // self.nfc_stream_bytes))

    @property
    def proxies_door(self) -> Door | None:
        """Where the door of remote proxies listens; None: there is none. SettingsError for what is no address."""
        return parse_door(self.proxies_listen) if self.proxies_listen else None

    @property
    def tls_dir(self) -> Path:
        return self.data_dir / "tls"

    @property
    def server_key_file(self) -> Path:
        return self.data_dir / "server.key"

    @property
    def signing_key_file(self) -> Path:
        return self.data_dir / "server-signing.key"

    @property
    def broker_dir(self) -> Path:
        return self.data_dir / "broker"

    @property
    def run_dir(self) -> Path:
        return self.data_dir / "run"

    @property
    def proxies_dir(self) -> Path:
        return self.data_dir / "proxies"

    @property
    def log_dir(self) -> Path:
        return self.data_dir / "log"

    def make_directories(self) -> None:
        """Create the data directory's layout, readable by its owner only."""
        for path in (
            self.data_dir, self.broker_dir, self.run_dir, self.proxies_dir, self.log_dir
        ):  # fmt: skip
            try:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise SettingsError(
                    f"the data directory {path} cannot be created: {error.strerror}; "
                    "name another with --data-dir or change its owner"
                ) from error

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over the environment, the environment over files of secrets (`VMHAUL_SECRETS_DIR`, where
        `vmhaul_database` holds the setting `database`), these over `<data_dir>/vmhaul.toml`.
        """
        del dotenv_settings, file_secret_settings
        given = init_settings().get("data_dir") or env_settings().get("data_dir")
        file = Path(given or default_data_dir()) / SETTINGS_FILE
        toml = TomlConfigSettingsSource(settings_cls, file)
        secrets_dir = os.environ.get("VMHAUL_SECRETS_DIR")
        if not secrets_dir:
            return init_settings, env_settings, toml
        files = SecretsSettingsSource(settings_cls, secrets_dir=secrets_dir)
        return init_settings, env_settings, files, toml


def load_settings(**given: Any) -> Settings:
    """Settings with `given` (what is not None) over environment and file; SettingsError names every bad one."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()
        )
        raise SettingsError(f"settings cannot be used: {wrong}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{SETTINGS_FILE} in the data directory cannot be read: {error}") from error
