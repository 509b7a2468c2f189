"""A proxy's life on a machine with systemd: installed over SSH, works, is upgraded, killed and removed.

`make deploy-test`. The machine is a container whose PID 1 is systemd; server, simulated site and repository are this
machine's. Containers of the stage's engine reach nothing outside, so the requirements come from a wheelhouse.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import requires
from pathlib import Path
from typing import Any, Final

import asyncssh
import psutil
from vmhaul_lab import process
from vmhaul_lab.plan import DATASTORES, SitePlan, quick_vms
from vmhaul_lab.site import LabSite
from vmhaul_lab.verify import sha256

from tests.e2e.platform import Platform
from tests.e2e.setup import connect, create_job
from tests.stages import bases
from tests.stages.engine import Engine, running_engine
from tests.stages.report import Report, StageError, until
from tests.support.ports import free_port

IMAGE: Final = "vmhaul-stage/machine"
NETWORK: Final = "vmhaul-deploy"
SUBNETS: Final = tuple(f"10.213.{number}" for number in range(77, 97))
NAME: Final = "px1"
DISK_BYTES: Final = 192 << 20
LIMIT_S: Final = 1800.0


def main() -> int:
    return Report("deploy-test").run(_run)


def _run(report: Report) -> None:
    # The service has a /tmp of its own, so the repository lies elsewhere, at one path for both machines.
    scratch = Path(tempfile.mkdtemp(prefix="vmhaul-deploy-", dir="/srv"))
    try:
        with running_engine() as engine:
            with report.step("a bare Debian server with systemd and SSH, as an image"):
                bases.make_debian(engine)
                bases.build_stand_in(engine, IMAGE, bases.HERE / "images" / "machine")
            with report.step("a wheelhouse with vmhaul's requirements"):
                wheelhouse = _wheelhouse()
            net = _free_net()
            engine.docker(
                "network", "create", "--subnet", f"{net}.0/24", "--gateway", f"{net}.1", NETWORK
            )
            _with_machine(report, _Machine(engine, f"{net}.1", f"{net}.10"), scratch, wheelhouse)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _free_net() -> str:
    """The first three numbers of a network that this machine is not in."""
    taken = {
        one.address.rpartition(".")[0]
        for addresses in psutil.net_if_addrs().values()
        for one in addresses
    }
    return next(net for net in SUBNETS if net not in taken)


def _wheelhouse() -> Path:
    """Made once; `make clean` removes it."""
    wanted = [text for text in requires("vmhaul") or () if "extra ==" not in text]
    # pip asks which requirements hold for its own Python; Debian 12's is 3.11.2, for which redis has one more.
    wanted.append("async-timeout>=4.0.3")
    done = bases.CACHE / "wheelhouse"
    stamp = done / "made-from.json"
    if stamp.exists() and json.loads(stamp.read_text()) == wanted:
        return done
    shutil.rmtree(done, ignore_errors=True)
    done.mkdir(parents=True)
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:"]
    words += ["--python-version", "3.11", "--dest", str(done), *wanted]
    subprocess.run(words, check=True)
    stamp.write_text(json.dumps(wanted))
    return done


def _with_machine(report: Report, machine: _Machine, scratch: Path, wheelhouse: Path) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    (scratch / "id").write_bytes(key.export_private_key())
    (scratch / "id").chmod(0o600)
    (scratch / "authorized_keys").write_bytes(key.export_public_key())
    repository = scratch / "repository"
    repository.mkdir()
    with report.step("the machine starts"):
        machine.engine.docker(
            "run", "--detach", "--name", NAME, "--hostname", NAME, "--network", NETWORK, "--ip", machine.address,
            "--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined",
            "--cgroupns=host", "--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw", "--tmpfs", "/run", "--tmpfs", "/tmp",
            "--volume", f"{repository}:{repository}", IMAGE,
        )  # fmt: skip
        until("systemd is up", machine.is_up, limit_s=180)
        machine.run("mkdir", "-p", "-m", "700", "/root/.ssh")
        machine.engine.docker(
            "cp", str(scratch / "authorized_keys"), f"{NAME}:/root/.ssh/authorized_keys"
        )
        machine.run("chown", "root:root", "/root/.ssh/authorized_keys")
    plan = SitePlan(datastores=DATASTORES, vms=quick_vms(1, disks=4, capacity_bytes=DISK_BYTES))
    site = LabSite(scratch / "site", plan, binary=process.labvc_binary(), listen=f"{machine.host}:0")
    options = [
        "--proxies-listen",
        f"{machine.host}:{free_port()}",
        "--proxies-broker-port",
        str(free_port()),
    ]
    with site, _server(scratch / "data", options) as product:
        _life(report, product, site, machine, scratch, repository, wheelhouse)


@contextmanager
def _server(data: Path, options: list[str]) -> Iterator[Platform]:
    product = Platform(data, options=options)
    try:
        product.start()
        yield product
    finally:
        if product.process is not None:
            product.stop()


class _Machine:
    def __init__(self, engine: Engine, host: str, address: str) -> None:
        """`host`: this machine's address in the network."""
        self.engine = engine
        self.host = host
        self.address = address

    def run(self, *words: str, check: bool = True) -> str:
        return self.engine.docker("exec", NAME, *words, check=check)

    def is_up(self) -> bool:
        said = self.run("systemctl", "is-system-running", check=False).strip()
        return said in {"running", "degraded"}

    def main_pid(self) -> int:
        said = self.run(
            "systemctl", "show", "--property=MainPID", "--value", "vmhaul-proxy", check=False
        )
        return int(said.strip() or 0)


def _life(
    report: Report,
    product: Platform,
    site: LabSite,
    machine: _Machine,
    scratch: Path,
    repository: Path,
    wheelhouse: Path,
) -> None:
    connect(product, site, repository / "main")
    with report.step("the default proxy is removed, and does not come back"):
        product.run("proxy", "remove", "default")
        _expect(product.ask("/proxies")["items"] == [], "no proxy is left")
    with report.step(f"vmhaul proxy add root@{machine.address}"):
        done = product.run(
            "proxy", "add", f"root@{machine.address}", "--name", NAME, "--key-file", str(scratch / "id"), "--accept-host-key",
            "--slots", "1", "--wheelhouse", str(wheelhouse), timeout_s=LIMIT_S,
        )  # fmt: skip
        report.say(done.stderr.strip().replace("\n", "\n           "))
    _expect(_proxy(product)["state"] == "online", "it is online")
    unit = machine.run("systemctl", "show", "--property=User,ActiveState,UnitFileState", "vmhaul-proxy")
    _expect(
        "User=vmhaul" in unit and "ActiveState=active" in unit and "UnitFileState=enabled" in unit, unit
    )
    with report.step("a backup through it, and a restore that is equal"):
        create_job(product, "nightly", "--all", "--change-tracking")
        before = product.backup("nightly")
        _expect(_proxies_of(before) == {NAME}, f"its tasks ran on {NAME}: {_proxies_of(before)}")
        _compare(product, site, repository)
    _upgrade(report, product, machine)
    _crash(report, product, machine)
    with report.step("vmhaul proxy remove"):
        product.run("proxy", "remove", NAME, timeout_s=LIMIT_S)
        for path in (
            "/opt/vmhaul",
            "/var/lib/vmhaul-proxy",
            "/etc/systemd/system/vmhaul-proxy.service",
        ):
            _expect(
                not machine.run("sh", "-c", f"ls -d {path} 2>/dev/null || true").strip(),
                f"{path} is gone",
            )
        _expect("vmhaul" not in machine.run("cat", "/etc/passwd"), "its user is gone")
        _expect(product.ask("/proxies")["items"] == [], "no proxy is left")
        _expect(len(product.ask("/servers")["items"]) == 1, "the server stays managed")


def _upgrade(report: Report, product: Platform, machine: _Machine) -> None:
    """Its release counts as an older one, so that there is one to upgrade to."""
    with report.step("an upgrade while a job runs"):
        current = machine.run("readlink", "/opt/vmhaul/current").strip()
        # A copy, since the worker that runs goes on with the files it has.
        machine.run("cp", "-a", f"/opt/vmhaul/{current}", "/opt/vmhaul/releases/0.0.1-old")
        machine.run("ln", "-sfn", "releases/0.0.1-old", "/opt/vmhaul/current")
        machine.run("rm", f"/opt/vmhaul/{current}/complete")
        session = product.start_job("nightly", "--full")
        product.wait_for_progress(session, 180)
        pid = machine.main_pid()
        done = product.run(
            "proxy", "upgrade", NAME, "--wheelhouse", str(bases.CACHE / "wheelhouse"), timeout_s=LIMIT_S
        )
        report.say(done.stderr.strip().replace("\n", "\n           "))
        ended = product.wait_for(session, LIMIT_S)
        attempts = {task["attempt"] for vm in ended["vms"] for task in vm["tasks"]}
        _expect(
            ended["result"] == "success", f"the job ended well: {ended['result']} {ended['reason']}"
        )
        _expect(attempts == {1}, f"no task was disturbed: attempts {attempts}")
        _expect(machine.main_pid() not in (0, pid), "another worker runs")
        _expect(
            machine.run("readlink", "/opt/vmhaul/current").strip() == current, "the new release runs"
        )
        _expect(_proxy(product)["enabled"], "it takes tasks again")


def _crash(report: Report, product: Platform, machine: _Machine) -> None:
    with report.step("kill -9: systemd starts it again, and it works"):
        pid = machine.main_pid()
        machine.run("kill", "-9", str(pid))
        until("another worker runs", lambda: machine.main_pid() not in (0, pid), limit_s=120)
        product.backup("nightly")


def _compare(product: Platform, site: LabSite, repository: Path) -> None:
    for number, disk in enumerate(sorted(site.disks("vm01"), key=lambda d: d.key), 1):
        target = repository / f"{number}.raw"
        product.run(
            "restore", "disk", "vm01@latest", "--disk", str(number), "--to", str(target), "--proxy", NAME, timeout_s=LIMIT_S,
        )  # fmt: skip
        _expect(sha256(target) == site.live_sha256(disk), f"disk {number} is restored equal")
        target.unlink()


def _proxy(product: Platform) -> dict[str, Any]:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with suppress(OSError, ValueError):
            shown: dict[str, Any] = product.ask(f"/proxies/{NAME}")
            return shown
        time.sleep(0.5)
    raise StageError("the server does not answer")


def _proxies_of(session: dict[str, Any]) -> set[str]:
    return {task["proxy"] for vm in session["vms"] for task in vm["tasks"]}


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise StageError(what)


if __name__ == "__main__":
    sys.exit(main())
