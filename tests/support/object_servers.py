"""Object storage servers for tests: processes on loopback, on ports that were free, ended by their id."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.support.ports import free_port

ACCESS_KEY = "vmhaul-test-key"
SECRET_KEY = "vmhaul-test-secret-access-key"
START_TIMEOUT_S = 120.0
AZURITE_ACCOUNT = "devstoreaccount1"
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Of the emulator, the same everywhere; its manual has it."""


@dataclass(kw_only=True)
class ObjectServer:
    """A server that runs."""

    endpoint: str
    secrets: Mapping[str, str]
    process: subprocess.Popen[bytes]
    output: list[str] = field(default_factory=list)

    def location(self, bucket: str, prefix: str = "", **options: str) -> str:
        extra = "".join(f"&{name}={value}" for name, value in options.items())
        return f"s3://{bucket}/{prefix}?endpoint={self.endpoint}{extra}"

    def client(self) -> Any:
        import botocore.session
        from botocore.config import Config

        return botocore.session.Session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.secrets["access_key_id"],
            aws_secret_access_key=self.secrets["secret_access_key"],
            config=Config(s3={"addressing_style": "path"}, signature_version="s3v4"),
        )

    def new_bucket(self, *, lock: bool = False, versions: bool = False) -> str:
        name = f"bucket-{uuid4().hex[:12]}"
        client = self.client()
        if lock:
            client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
        else:
            client.create_bucket(Bucket=name)
        if versions:
            client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        client.close()
        return name

    def stop(self) -> None:
        end(self.process)


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


def wait_until(
    ready: Callable[[], bool], process: subprocess.Popen[bytes], what: str, output: list[str]
) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            end(process)
            raise AssertionError(f"{what} did not start:\n" + "".join(output)[-4000:])
        time.sleep(0.05)


def start_moto(port: int = 0) -> ObjectServer:
    """S3 as moto imitates it."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "tests.support.moto_server",
            "-H",
            "127.0.0.1",
            "-p",
            str(port),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": str(1 << 30)},
    )
    server = ObjectServer(
        endpoint="",
        secrets={"access_key_id": ACCESS_KEY, "secret_access_key": SECRET_KEY},
        process=process,
    )
    assert process.stdout is not None
    follow(process, server.output)

    def ready() -> bool:
        match = re.search(r"Running on (http://127\.0\.0\.1:\d+)", "".join(server.output))
        server.endpoint = match[1] if match else ""
        return match is not None

    wait_until(ready, process, "moto", server.output)
    return server


def follow(process: subprocess.Popen[bytes], output: list[str]) -> None:
    """Reads what the process says, so that it never waits for a reader; the last of it is kept."""
    stream = process.stdout
    assert stream is not None

    def read() -> None:
        with contextlib.suppress(ValueError, OSError):
            for line in stream:
                output.append(line.decode(errors="replace"))
                del output[:-400]

    threading.Thread(target=read, daemon=True).start()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False


def start_azurite(directory: Path) -> ObjectServer:
    """Azure Blob as Microsoft's own emulator imitates it."""
    port = free_port()
    program = Path(sys.executable).parent.parent / "azurite/node_modules/.bin/azurite-blob"
    process = subprocess.Popen(
        [
            str(program), "--silent", "--skipApiVersionCheck", "--inMemoryPersistence",
            "--disableTelemetry", "--blobHost", "127.0.0.1", "--blobPort", str(port),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=directory,
    )  # fmt: skip
    endpoint = f"http://127.0.0.1:{port}/{AZURITE_ACCOUNT}"
    server = ObjectServer(endpoint=endpoint, secrets={"account_key": AZURITE_KEY}, process=process)
    follow(process, server.output)
    wait_until(lambda: answers(endpoint), process, "azurite", server.output)
    return server


def azure_container(server: ObjectServer) -> str:
    """Location of a new container. Made with a signed request, as no library here has containers."""
    name = f"container-{uuid4().hex[:12]}"
    date = formatdate(usegmt=True)
    version = "2021-08-06"
    resource = f"/{AZURITE_ACCOUNT}/{AZURITE_ACCOUNT}/{name}\nrestype:container"
    text = "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{version}\n{resource}"
    digest = hmac.new(base64.b64decode(AZURITE_KEY), text.encode(), hashlib.sha256).digest()
    request = urllib.request.Request(
        f"{server.endpoint}/{name}?restype=container",
        method="PUT",
        headers={
            "x-ms-date": date,
            "x-ms-version": version,
            "Authorization": f"SharedKey {AZURITE_ACCOUNT}:{base64.b64encode(digest).decode()}",
        },
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 201
    return f"az://{name}/some/place?account={AZURITE_ACCOUNT}&endpoint={server.endpoint}"


class RgwCluster:
    """Ceph's S3 gateway with a cluster of one in memory: mon, osd, mgr and radosgw in the foreground, as
    children; all files in one directory.
    """

    server: ObjectServer

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: list[subprocess.Popen[bytes]] = []
        self.output: list[str] = []

    def start(self) -> None:
        for part in ("mon", "osd", "mgr", "rgw", "run", "crash"):
            (self.directory / part).mkdir(parents=True)
        port = free_port()
        self._configure(port)
        self._make_monitor()
        self._spawn("ceph-mon", "-i", "a")
        self._make_osd()
        self._spawn("ceph-osd", "-i", "0")
        self._key("mgr.x", "mgr", mon="allow profile mgr", osd="allow *")
        self._spawn("ceph-mgr", "-i", "x")
        self._key("client.rgw.a", "rgw", mon="allow *", osd="allow *", mgr="allow *")
        self._run(
            "radosgw-admin", "user", "create", "--uid=lab", "--display-name=lab",
            f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}",
        )  # fmt: skip
        gateway = self._spawn("radosgw", "-n", "client.rgw.a")
        endpoint = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(endpoint), gateway, "radosgw", self.output)
        secrets = {"access_key_id": ACCESS_KEY, "secret_access_key": SECRET_KEY}
        self.server = ObjectServer(
            endpoint=endpoint, secrets=secrets, process=gateway, output=self.output
        )

    def add_user(self, name: str) -> dict[str, str]:
        """Keys of another account, which owns nothing."""
        secrets = {"access_key_id": f"{name}-key-id", "secret_access_key": f"{name}-secret-key"}
        self._run(
            "radosgw-admin", "user", "create", f"--uid={name}", f"--display-name={name}",
            f"--access-key={secrets['access_key_id']}", f"--secret-key={secrets['secret_access_key']}",
        )  # fmt: skip
        return secrets

    def stop(self) -> None:
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)  # all of it is in memory; nothing is to be saved
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _configure(self, port: int) -> None:
        at = self.directory
        v2, v1 = free_port(), free_port()
        self.monitor = f"[v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]"
        self.fsid = str(uuid4())
        (at / "ceph.conf").write_text(f"""[global]
fsid={self.fsid}
mon host={self.monitor}
public addr=127.0.0.1
run dir={at}/run
admin socket={at}/run/$name.asok
pid file=
log file=
log to stderr=false
mon cluster log file={at}/run/cluster.log
crash dir={at}/crash
keyring={at}/$type/keyring
mon data={at}/mon
osd data={at}/osd
mgr data={at}/mgr
auth cluster required=cephx
auth service required=cephx
auth client required=cephx
osd pool default size=1
osd pool default min size=1
osd pool default pg num=4
osd pool default pgp num=4
osd pool default pg autoscale mode=off
mon allow pool size one=true
mon max pg per osd=1000
osd objectstore=memstore
memstore device bytes=2147483648
osd crush chooseleaf type=0
[client.admin]
keyring={at}/admin.keyring
[client.rgw.a]
keyring={at}/rgw/keyring
rgw frontends=beast endpoint=127.0.0.1:{port}
rgw data={at}/rgw
rgw thread pool size=16
""")

    def _make_monitor(self) -> None:
        at = self.directory
        map_, keys, admin = str(at / "monmap"), str(at / "mon.keyring"), str(at / "admin.keyring")
        self._run("monmaptool", "--create", "--fsid", self.fsid, "--addv", "a", self.monitor, map_)
        self._run(
            "ceph-authtool",
            "--create-keyring",
            keys,
            "--gen-key",
            "-n",
            "mon.",
            "--cap",
            "mon",
            "allow *",
        )
        self._run(
            "ceph-authtool", "--create-keyring", admin, "--gen-key", "-n", "client.admin",
            "--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *",
        )  # fmt: skip
        self._run("ceph-authtool", keys, "--import-keyring", admin)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", map_, "--keyring", keys)

    def _make_osd(self) -> None:
        number = str(uuid4())
        self._run("ceph", "osd", "new", number)
        self._key("osd.0", "osd", mon="allow profile osd", mgr="allow profile osd", osd="allow *")
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", number)
        self._run("ceph", "osd", "crush", "add-bucket", "h", "host")
        self._run("ceph", "osd", "crush", "move", "h", "root=default")
        self._run("ceph", "osd", "crush", "add", "osd.0", "1", "host=h")

    def _key(self, name: str, part: str, **caps: str) -> None:
        words = [word for cap in caps.items() for word in cap]
        self._run(
            "ceph", "auth", "get-or-create", name, *words, "-o", str(self.directory / part / "keyring")
        )

    def _run(self, program: str, *arguments: str) -> None:
        with_configuration = () if program in {"monmaptool", "ceph-authtool"} else self._configuration()
        done = subprocess.run(
            [program, *with_configuration, *arguments],
            capture_output=True,
            check=False,
            timeout=START_TIMEOUT_S,
        )
        assert done.returncode == 0, f"{program} {arguments}: {done.stderr.decode()[-2000:]}"

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [program, *self._configuration(), "-f", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.processes.append(process)
        follow(process, self.output)
        return process

    def _configuration(self) -> tuple[str, ...]:
        return "-c", str(self.directory / "ceph.conf")
