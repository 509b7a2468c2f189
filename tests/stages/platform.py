"""The composition under test, as an operator sees it: its commands, its ports, its containers."""

from __future__ import annotations

import base64
import json
import secrets
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any, Final

from tests.stages.engine import CHECKOUT, DockerError, Engine
from tests.stages.report import StageError
from tests.support import ports

PROJECT: Final = "vmhaul-stage"
SITE: Final = "/var/lib/lab/site"
SERVICES: Final = ("server", "proxy", "flower", "init")
PORTS: Final = ("VMHAUL_PORT", "FLOWER_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")


def free_port() -> str:
    return str(ports.free_port())


@dataclass(kw_only=True)
class Platform:
    engine: Engine
    images: dict[str, str]
    ports: dict[str, str] = field(default_factory=lambda: {name: free_port() for name in PORTS})
    repository_password: str = field(default_factory=lambda: secrets.token_hex(16))

    # -- compose

    def compose(self, *arguments: str, text_in: str | None = None, timeout_s: float = 600.0) -> str:
        return self.engine.docker(
            *("compose", "--project-name", PROJECT, "--profile", "lab", *arguments),
            text_in=text_in,
            timeout_s=timeout_s,
            extra={**self.images, **self.ports},
            cwd=CHECKOUT,
        )

    def inside(self, service: str, *words: str, text_in: str = "", timeout_s: float = 600.0) -> str:
        return self.compose("exec", "-T", service, *words, text_in=text_in, timeout_s=timeout_s)

    def containers(self, service: str) -> list[str]:
        """Ids of the running ones."""
        return self.compose("ps", "--quiet", "--status", "running", service).split()

    def logs(self, service: str) -> str:
        return self.compose("logs", "--no-color", "--no-log-prefix", service)

    # -- vmhaul

    def vmhaul(self, *words: str, text_in: str = "") -> str:
        return self.inside("server", "vmhaul", *words, text_in=text_in)

    def ask(self, *words: str) -> Any:
        return json.loads(self.vmhaul(*words, "--json"))

    def proxies(self) -> dict[str, dict[str, Any]]:
        """By name, which is the container's short id."""
        return {proxy["name"]: proxy for proxy in _items(self.ask("proxy", "list"))}

    def online(self) -> list[str]:
        return [name for name, proxy in self.proxies().items() if proxy["state"] == "online"]

    def last_session(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("session", "show", "latest")
        return found

    @staticmethod
    def tasks_of(session: dict[str, Any]) -> list[dict[str, Any]]:
        return [task for vm in session["vms"] for task in vm["tasks"]]

    # -- the simulated site

    def lab(self, *words: str) -> Any:
        return json.loads(self.inside("lab", "vmhaul-lab", *words, "--json", "--dir", SITE))

    def digests(self, vm: str) -> list[str]:
        """SHA-256 of the VM's disks as their guest sees them, in the order of the disks."""
        disks = [disk for disk in self.lab("disks") if disk["vm"] == vm]
        files = [disk["live_file"] for disk in sorted(disks, key=lambda disk: disk["key"])]
        if not files:
            raise StageError(f"the site has no VM {vm}")
        lines = self.inside("lab", "sha256sum", *files).splitlines()
        return [line.split()[0] for line in lines]

    # -- doors

    def get(self, port: str, path: str, login: str = "") -> tuple[int, str]:
        """Status and text of a page at a published port."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports[port]}{path}")
        if login:
            request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=30) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""

    def series(self, query: str) -> list[dict[str, Any]]:
        """What Prometheus answers now."""
        _, text = self.get("PROMETHEUS_PORT", f"/api/v1/query?query={urllib.request.quote(query)}")
        return list(json.loads(text)["data"]["result"]) if text else []

    def secret(self, service: str, path: str) -> str:
        return self.inside(service, "cat", path).strip()

    def tell_why(self) -> str:
        """The ends of all logs, for a failure."""
        try:
            return self.compose("ps", "--all") + self.compose("logs", "--no-color", "--tail", "25")
        except DockerError as error:
            return str(error)


def _items(answer: Any) -> list[dict[str, Any]]:
    return list(answer["items"] if isinstance(answer, dict) else answer)
