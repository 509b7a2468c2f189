"""A Docker engine of the stage's own: own root, socket and process file, nothing of the machine changed.

Without firewall rules and without IP forwarding, so that other tests with network namespaces do not notice it:
containers of a network (`docker network create`; there is no default one) reach each other and the host's end of it, and
published ports answer on loopback, but no container reaches the outside. Builds, which have to, run on the host's
network.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

CHECKOUT: Final = Path(__file__).resolve().parents[2]
SETUP: Final = CHECKOUT / "tests" / "stages" / "setup.sh"
START_LIMIT_S: Final = 90.0
STOP_LIMIT_S: Final = 60.0
EXIT_NO_PROGRAMS: Final = 77


class NoEngineError(Exception):
    """No Docker engine can be started here; the message says why."""


class DockerError(Exception):
    """A docker command failed; the message has the end of what it printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A running engine. Commands go to it and to no other."""

    socket: Path
    config: Path

    @property
    def environment(self) -> dict[str, str]:
        """For anything that talks to the engine."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "COMPOSE_"))}
        return {
            **kept,
            "DOCKER_HOST": f"unix://{self.socket}",
            "DOCKER_CONFIG": str(self.config),
            "DOCKER_BUILDKIT": "1",
        }

    def docker(
        self,
        *arguments: str,
        stdin: Any = None,
        text_in: str | None = None,
        check: bool = True,
        timeout_s: float = 900.0,
        extra: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> str:
        """Standard output of `docker ARGUMENTS`; DockerError when it fails and `check`."""
        done = subprocess.run(
            ["docker", *arguments],
            env={**self.environment, **(extra or {})},
            stdin=stdin if text_in is None else None,
            input=text_in,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            cwd=cwd,
        )
        if check and done.returncode:
            shown = " ".join(arguments[:6])
            raise DockerError(
                f"`docker {shown} ...` failed ({done.returncode}):\n{(done.stderr + done.stdout)[-3000:]}"
            )
        return done.stdout

    def build(self, context: Path, tag: str, *arguments: str, timeout_s: float = 900.0) -> None:
        """Build an image on the host's network."""
        self.docker(
            "build",
            "--progress=plain",
            "--network=host",
            "--tag",
            tag,
            *arguments,
            str(context),
            timeout_s=timeout_s,
        )

    def json(self, *arguments: str) -> Any:
        """What `docker ARGUMENTS` prints, one JSON value or one a line."""
        text = self.docker(*arguments).strip()
        try:
            return json.loads(text or "[]")
        except ValueError:
            return [json.loads(line) for line in text.splitlines()]


@contextmanager
def running_engine() -> Iterator[Engine]:
    """An engine for as long as the block lasts. NoEngineError when none can be started.

    Afterwards its process, its containers and all its data are gone.
    """
    _programs()
    # Of its own and short: a socket's path may have 107 bytes.
    root = Path(tempfile.mkdtemp(prefix="vmhaul-engine-", dir=os.environ.get("VMHAUL_STAGE_DIR")))
    try:
        process = _start(root)
        try:
            engine = Engine(socket=root / "docker.sock", config=_config(root))
            _wait_until_it_answers(engine, process, root / "dockerd.log")
            try:
                yield engine
            finally:
                _remove_containers(engine)
        finally:
            _stop(process)
    finally:
        _remove(root)


def _programs() -> None:
    done = subprocess.run([str(SETUP)], check=False)
    if done.returncode == EXIT_NO_PROGRAMS:
        raise NoEngineError("its programs are not installed, see above")
    if done.returncode:
        raise NoEngineError(
            f"its programs could not be fetched (exit status {done.returncode}), see above"
        )
    if os.geteuid() != 0:
        raise NoEngineError("an engine of one's own needs root")
    for program in ("dockerd", "docker", "containerd"):
        if shutil.which(program) is None:
            raise NoEngineError(f"{program} is not on PATH")


def _config(root: Path) -> Path:
    """A client's configuration of its own, with the plugins that `setup.sh` fetched."""
    config = root / "config"
    config.mkdir()
    (config / "cli-plugins").symlink_to(CHECKOUT / ".venv" / "docker" / "cli-plugins")
    return config


def _start(root: Path) -> subprocess.Popen[bytes]:
    arguments: Sequence[str] = [
        "dockerd",
        f"--data-root={root / 'data'}",
        f"--exec-root={root / 'exec'}",
        f"--pidfile={root / 'dockerd.pid'}",
        f"--host=unix://{root / 'docker.sock'}",
        f"--config-file={root / 'daemon.json'}",
        # The machine's packet filter and its forwarding stay as they are.
        "--iptables=false",
        "--ip6tables=false",
        "--ip-forward=false",
        "--ip-masq=false",
        # No interface of a name that another engine may have: containers get networks of their own.
        "--bridge=none",
    ]
    (root / "daemon.json").write_text("{}")  # not the machine's
    with (root / "dockerd.log").open("wb") as log:
        return subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def _wait_until_it_answers(engine: Engine, process: subprocess.Popen[bytes], log: Path) -> None:
    end_s = time.monotonic() + START_LIMIT_S
    while True:
        with contextlib.suppress(DockerError, subprocess.TimeoutExpired):
            engine.docker("version", timeout_s=10.0)
            return
        ended = process.poll() is not None
        if ended or time.monotonic() > end_s:
            end = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
            how = f"it ended with {process.returncode}" if ended else "it does not answer"
            raise NoEngineError(f"dockerd: {how}; the end of its log:\n{end}")
        time.sleep(0.25)


def _remove_containers(engine: Engine) -> None:
    with contextlib.suppress(DockerError, subprocess.TimeoutExpired):
        names = engine.docker("ps", "--all", "--quiet", timeout_s=30.0).split()
        if names:
            engine.docker("rm", "--force", "--volumes", *names, timeout_s=120.0)
        engine.docker("network", "prune", "--force", timeout_s=60.0)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """The engine and the containerd that it started, by the process group that is theirs alone."""
    process.terminate()
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _remove(root: Path) -> None:
    """Mounts that a killed engine left are taken down first, the innermost before the others."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{root}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
    shutil.rmtree(root, ignore_errors=True)
    if root.exists():
        # A file that a container's overlay held a moment longer.
        time.sleep(1.0)
        shutil.rmtree(root)
