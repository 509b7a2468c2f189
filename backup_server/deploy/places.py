"""Where a proxy lies on its machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Self

SERVICE: Final = "vmhaul-proxy"
USER: Final = "vmhaul"
INSTALL_DIR: Final = "/opt/vmhaul"
DATA_DIR: Final = "/var/lib/vmhaul-proxy"
_PATH: Final = re.compile(r"(/[A-Za-z0-9._+-]+){2,}")
"""Never right below the root: it is removed with all that is in it."""
_WORD: Final = re.compile(r"[a-z][a-z0-9_-]{0,30}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyPlaces:
    """Of a machine of any kind, as they are stored and asked for."""

    install_dir: str
    data_dir: str
    service: str
    user: str

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Of what was stored or asked for; what is not named is as usual. ValueError as the kind of machine says."""
        return cls(
            **{
                item.name: str(values[item.name])
                for item in fields(cls)
                if values.get(item.name) is not None
            }
        )

    def values(self) -> dict[str, str]:
        return {name: str(value) for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Places(AnyPlaces):
    """Of Linux. Several proxies on a machine differ in all of them but the user."""

    install_dir: str = INSTALL_DIR
    data_dir: str = DATA_DIR
    service: str = SERVICE
    user: str = USER

    def __post_init__(self) -> None:
        """ValueError for what a unit file or a script could not carry."""
        for name in ("install_dir", "data_dir"):
            value = getattr(self, name)
            if not _PATH.fullmatch(value) or ".." in value.split("/"):
                raise ValueError(
                    f"{name} must be an absolute path at least two levels deep, of letters, digits and ._+-"
                )
        for name in ("service", "user"):
            if not _WORD.fullmatch(getattr(self, name)):
                raise ValueError(
                    f"{name} must be 1 to 31 small letters, digits, dashes and underscores, a letter first"
                )

    @property
    def releases(self) -> str:
        return f"{self.install_dir}/releases"

    @property
    def current(self) -> str:
        return f"{self.install_dir}/current"

    @property
    def python(self) -> str:
        return f"{self.current}/venv/bin/python"

    def release(self, release_id: str) -> str:
        return f"{self.releases}/{release_id}"

    @property
    def unit_file(self) -> str:
        return f"/etc/systemd/system/{self.service}.service"

    @property
    def script(self) -> str:
        return f"/etc/init.d/{self.service}"

    @property
    def pid_file(self) -> str:
        return f"{self.data_dir}/supervisor.pid"

    @property
    def log_file(self) -> str:
        return f"{self.data_dir}/proxy.log"
