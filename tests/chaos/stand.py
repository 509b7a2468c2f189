"""A round's stand: simulated site, broker, database, servers, proxies, repositories; and how it is asked for things."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from vmhaul_lab.site import LabSite

from tests.chaos import network
from tests.chaos.api import TIMEOUT_S, Api, AwayError
from tests.chaos.network import ADDRESSES, Cables, server_address
from tests.chaos.objects import Objects
from tests.chaos.parts import FalseClock, Keeper, Part, Postgres, Redis, server_command, worker_command
from tests.chaos.patience import PATIENCE
from tests.chaos.plan import LEASE_S, LUN_STORAGE, SNAPSHOT_STORAGE, VMS, Link, RoundPlan
from tests.chaos.storage import DATASTORE, DIRECT_MODE, StorageSystem, site_plan

PASSWORD: Final = "correct horse battery"
START_S: Final = 240.0
"""For steps before the faults: other rounds, and whatever else this machine does, may slow them."""
SERVER_SETTINGS: Final = {
    "flower": False,
    "default_proxy_slots": 3,
    "heartbeat_s": 1,
    "lease_s": LEASE_S,
    "proxy_offline_after_s": 4,
    "order_ttl_s": 20,
    "task_attempts": 8,
    "task_retry_wait_s": 0.5,
    "dispatch_interval_s": 0.3,
    "reaper_interval_s": 0.7,
    "engine_interval_s": 0.3,
    "engine_threads": 4,
    "step_wait_s": 0.5,
    "step_tries": 8,
    "free_space_floor_bytes": 0,
    "prune_min_age_s": 20,
    "inventory_max_age_s": 5,
    "janitor_interval_s": 2,
    "janitor_wait_s": 1,
    "janitor_wait_max_s": 4,
    "agent_timeout_s": 60,
}
PROXY_SETTINGS: Final = {
    "heartbeat_s": 1.0,
    "progress_s": 0.3,
    "resend_s": 2.0,
    "secrets_timeout_s": 20.0,
    "stop_grace_s": 0.5,
    "kill_grace_s": 5.0,
}


def wait_for(what: str, probe: Callable[[], Any], timeout_s: float, pause_s: float = 0.1) -> Any:
    """The first true answer; TimeoutError that names `what`."""
    until = PATIENCE.now_s() + timeout_s
    while PATIENCE.now_s() < until:
        if answer := probe():
            return answer
        time.sleep(pause_s)
    raise TimeoutError(f"waited {timeout_s:.0f} s in vain: {what}")


class Stand:
    """Everything of a round. `start` once, `stop` once, whatever `start` did."""

    def __init__(self, directory: Path, plan: RoundPlan, template: Path) -> None:
        self.directory = directory
        self.plan = plan
        self.repositories = directory / "repositories"
        self.parts: dict[str, Part] = {}
        self.cables: dict[str, Cables] = {}
        self._template = template
        self._keeper: Keeper | None = None
        self.site = LabSite(
            directory / "site", site_plan(plan), seed=plan.number, listen=f"{ADDRESSES[Link.SITE]}:0"
        )
        self.storage = StorageSystem(plan, self.site, directory)
        self.objects = Objects(directory) if plan.objects else None

    # -- life

    def start(self) -> None:
        network.set_up()
        self.repositories.mkdir()
        # Small, so that it can be filled for a moment, and in memory: what is tested is not the disk.
        mount = ["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(self.repositories)]
        subprocess.run(mount, check=True)
        self.site.start()
        self.storage.start()
        if self.objects is not None:
            self._add(self.objects.start())
        redis = Redis(self.directory / "redis", ADDRESSES[Link.BROKER])
        self._add(redis)
        database = ""
        if self.plan.postgres:
            postgres = Postgres(
                self.directory / "postgres", self._template / "postgres", ADDRESSES[Link.DATABASE]
            )
            self._add(postgres)
            database = postgres.url
        for part in list(self.parts.values()):
            part.start()
        self._await(*self.parts)
        for number, name in enumerate(self.plan.server_names):
            self._add_server(name, number, database, redis.url)
            self.parts[name].start()
            self._await(name)
        self._start_proxies()
        self._keeper = Keeper(list(self.parts.values()))
        self._keeper.start()

    def _add(self, part: Part) -> None:
        self.parts[part.name] = part
        if part.name in self.plan.clocked:
            part.clock = FalseClock(
                self.directory / f"{part.name}.clock", self._template / "false_clock.so"
            )

    def _await(self, *names: str) -> None:
        for name in names:
            wait_for(f"{name} answers", self.parts[name].answers, START_S)

    def data_dir(self, server: str) -> Path:
        return self.directory / server

    @property
    def database_url(self) -> str:
        postgres = self.parts.get("postgres")
        if isinstance(postgres, Postgres):
            return postgres.url
        return f"sqlite:///{self.data_dir('server1') / 'vmhaul.db'}"

    @property
    def redis_url(self) -> str:
        redis = self.parts["redis"]
        assert isinstance(redis, Redis)
        return redis.url

    def _add_server(self, name: str, number: int, database: str, broker: str) -> None:
        data = self.data_dir(name)
        (data / "run").mkdir(parents=True, mode=0o700)
        if number:
            first = self.data_dir(self.plan.server_names[0])
            for key in ("server.key", "server-signing.key", "api-token"):
                shutil.copy2(first / key, data / key)
            shutil.copytree(first / "tls", data / "tls")
        elif not database:
            shutil.copyfile(self._template / "jobs.db", data / "vmhaul.db")
        inside: list[str] = []
        address = ADDRESSES[Link.SERVER]
        if self.plan.far_servers:
            self.cables[name] = Cables(10 + number, server=number)
            inside, address = self.cables[name].inside, server_address(number)
        settings = {
            **SERVER_SETTINGS, "host": address, "port": 8470 + number,
            "proxies_listen": f"{address}:{8480 + number}",
            "broker": broker, **({"database": database} if database else {}),
        }  # fmt: skip
        file = data / "run" / "up.json"
        file.write_text(json.dumps(settings))
        api = Api(data)

        def healthy() -> bool:
            try:
                api.get("/about")
            except AwayError:
                return False
            return True

        log = self.directory / f"{name}.log"
        self._add(Part(name, server_command(inside, data, file), log, answers=healthy))

    def _start_proxies(self) -> None:
        """On other machines, as far as anybody can tell: they join by token, over the door for proxies."""
        site = [self.site.nfs_host] if self.site.nfs_host else []
        for number, name in enumerate(self.plan.proxy_names):
            token = self._patient().post("/proxies", {"name": name, "slots": 2})["join_token"]
            self.cables[name] = Cables(number, site=site)
            self.join(name, token)
            command = worker_command(self.cables[name].inside, self._proxy_dir(name))
            self._add(Part(name, command, self.directory / f"{name}.log"))
            self.parts[name].start()
        # Not started here: the servers are not run by `vmhaul up`.
        self._patient().call("DELETE", "/proxies/default")
        wait_for("all proxies are online", lambda: self.online() == len(self.plan.proxy_names), START_S)

    def _proxy_dir(self, name: str) -> Path:
        return self.directory / "proxies" / name

    def join(self, name: str, token: str, *, anew: bool = False) -> None:
        """Enrol a proxy whose worker does not run. `anew`: on a machine that knows nothing of an earlier life.
        CalledProcessError when no server takes it.
        """
        directory = self._proxy_dir(name)
        if anew:
            shutil.rmtree(directory)
        if not directory.exists():
            directory.mkdir(parents=True, mode=0o700)
            lines = [f"{key} = {value}\n" for key, value in PROXY_SETTINGS.items()]
            (directory / "proxy.toml").write_text("".join(lines))
            vms = dict(zip(self.plan.proxy_names, self.plan.proxy_vms, strict=False))
            if name in vms:
                self.site.proxy(vms[name]).write_settings(directory)
        subprocess.run(
            [*worker_command(self.cables[name].inside, directory), "--join", "token"],
            input=token, text=True, check=True, capture_output=True, timeout=START_S,
        )  # fmt: skip

    def online(self) -> int:
        """How many proxies the server hears of."""
        try:
            found = self.api().get("/proxies")["items"]
        except AwayError:
            return 0
        return sum(proxy["state"] == "online" for proxy in found)

    def stop(self) -> list[str]:
        """End everything; what did not end by itself."""
        if self._keeper is not None:
            self._keeper.stop()
        stuck = []
        order = [*self.plan.proxy_names, *self.plan.server_names, "redis", "postgres", "objects"]
        for name in order:
            part = self.parts.get(name)
            if part is not None and not part.end():
                stuck.append(f"{name} did not end when it was asked to")
        self.storage.stop()
        if self.objects is not None:
            self.objects.stop()
        self.site.stop()
        subprocess.run(["umount", "-l", str(self.repositories)], check=False, capture_output=True)
        return stuck

    # -- asking

    def api(self, number: int = 0, timeout_s: float = TIMEOUT_S) -> Api:
        names = self.plan.server_names
        return Api(self.data_dir(names[number % len(names)]), timeout_s)

    def _patient(self) -> Api:
        return self.api(timeout_s=START_S)

    def repository(self, name: str) -> tuple[str, dict[str, str]]:
        """Where it is, and what opens the storage."""
        if self.objects is not None and name == "main":
            return self.objects.location, self.objects.secrets
        return str(self.repositories / name), {}

    def attached(self) -> list[str]:
        """Block devices that proxies' VMs have beside their own disk and the datastore's LUN."""
        luns = [] if self.plan.storage not in LUN_STORAGE else self.site.luns(DATASTORE).naas
        return [
            f"{name} has {device}"
            for name in self.plan.proxy_vms
            for device in [d for d in self.site.proxy(name).devices() if d["wwid"] not in luns][1:]
        ]

    def set_up(self) -> None:
        """vCenter, repositories, jobs."""
        api, site = self._patient(), self.site
        api.post(
            "/vcenters",
            {
                "name": "lab",
                "host": site.vcenter_host,
                "port": site.vcenter_port,
                "username": site.user,
                "password": site.password,
                "thumbprint_sha256": site.thumbprint_sha256,
            },
        )
        if self.plan.hotadd:
            self._confirm_vm(self.plan.proxy_names[0])
        self._set_up_storage()
        for name in ("main", "second"):
            location, secrets = self.repository(name)
            body = {"location": location, **({"storage_secrets": secrets} if secrets else {})}
            api.post("/repositories", {"name": name, "password": PASSWORD, **body})
        for vm in VMS:
            api.post(
                "/jobs",
                {
                    "name": f"nightly-{vm}",
                    "vcenter": "lab",
                    "repository": "main",
                    "selection": {"include": [{"type": "vm", "name": vm}]},
                    "retries": {"count": 1, "wait_s": 1},
                    "retention": {"keep": 3},
                    "storage_snapshots": self.plan.storage in SNAPSHOT_STORAGE,
                },
            )
        if self.plan.copies:
            api.post(
                "/jobs",
                {
                    "name": "copy",
                    "kind": "copy",
                    "repository": "second",
                    "source_repository": "main",
                    "selection": {"include": [{"type": "all"}]},
                    "retries": {"count": 0, "wait_s": 1},
                    "retention": {"keep": 3},
                },
            )

    def _set_up_storage(self) -> None:
        """The storage system is registered, and proxies know which datastores they reach."""
        registration = self.storage.registration()
        if registration is not None:
            self._patient().post("/storage-systems", registration)
        mode = DIRECT_MODE.get(self.plan.storage)
        if mode is None:
            return
        proxies = self.plan.proxy_names[: len(self.plan.proxy_vms) or None]
        for name in proxies:
            self._patient().post(f"/proxies/{name}/rescan")

        def reached(name: str) -> bool:
            found = self.api().get(f"/proxies/{name}")["discovery"]["datastores"]
            return any(one["mode"] == mode and one["readable"] for one in found)

        for name in proxies:
            wait_for(
                f"{name} reads {DATASTORE} by {mode}", lambda name=name: reached(name), START_S, 0.3
            )

    def _confirm_vm(self, proxy: str) -> None:
        """As an administrator does, for a proxy in a VM without VMware Tools."""

        def found() -> dict[str, Any] | None:
            discovery: dict[str, Any] = self.api().get(f"/proxies/{proxy}")["discovery"]
            return discovery if discovery["vms"] else None

        seen = wait_for(f"{proxy} knows its VM", found, START_S)
        self._patient().post(f"/proxies/{proxy}/confirm-vm", {"vm_uuid": seen["vm_uuid"]})
