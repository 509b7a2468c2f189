"""A storage host on this machine: a real sshd on loopback, and btrfs subvolumes on a file."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from tests.support.ports import free_port
from transports.storage_systems.base import Exposed, StorageAccess, Volume
from transports.vsphere.model import Secret

SIZE_BYTES = 256 << 20


def run(*words: str | Path) -> str:
    return subprocess.run(
        [str(word) for word in words], check=True, capture_output=True, text=True
    ).stdout


@contextlib.contextmanager
def mounted_btrfs(tmp_path: Path) -> Iterator[Path]:
    """An empty btrfs."""
    image, place = tmp_path / "btrfs.img", tmp_path / "tank"
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    place.mkdir()
    run("mkfs.btrfs", "-q", image)
    loop = run("losetup", "--find", "--show", image).strip()
    try:
        run("mount", "-t", "btrfs", loop, place)
        try:
            yield place
        finally:
            run("umount", place)
    finally:
        run("losetup", "-d", loop)


@dataclass(frozen=True)
class Sshd:
    port: int
    fingerprint: str
    private_key: str
    log: Path
    host: str = "127.0.0.1"

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


@contextlib.contextmanager
def running_sshd(tmp_path: Path, *, listen: str = "127.0.0.1", more: str = "") -> Iterator[Sshd]:
    """Lets in whoever has the key, as the user that runs the test. `more`: lines of its configuration."""
    directory = tmp_path / "sshd"
    directory.mkdir(mode=0o700)
    Path("/run/sshd").mkdir(exist_ok=True)
    host_key = asyncssh.generate_private_key("ssh-ed25519")
    user_key = asyncssh.generate_private_key("ssh-ed25519")
    (directory / "host_key").write_bytes(host_key.export_private_key())
    (directory / "host_key").chmod(0o600)
    (directory / "authorized_keys").write_bytes(user_key.export_public_key())
    port = free_port(listen)
    log = directory / "log"
    config = directory / "sshd_config"
    config.write_text(
        f"""Port {port}
ListenAddress {listen}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 100
{more}"""
    )
    program = shutil.which("sshd") or "/usr/sbin/sshd"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "-D", "-e", "-f", str(config)], stderr=output, stdin=subprocess.DEVNULL
        )
    try:
        for _ in range(600):
            if "listening" in log.read_text():
                break
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        else:
            raise AssertionError(f"sshd did not begin to listen: {log.read_text()}")
        yield Sshd(
            port=port,
            fingerprint=host_key.get_fingerprint("sha256"),
            private_key=user_key.export_private_key().decode(),
            log=log,
            host=listen,
        )
    finally:
        process.terminate()
        process.wait(20)


@dataclass(frozen=True)
class StorageHost:
    """An NFS server as the driver sees it; what is below its trees is read here as a client would find it."""

    sshd: Sshd
    trees: tuple[Path, ...]

    def access(self, **changes: object) -> StorageAccess:
        values: dict[str, object] = {
            "address": self.sshd.address,
            "identity": self.sshd.fingerprint,
            "secrets": {"private_key": Secret(self.sshd.private_key)},
            "options": {
                "kind": "btrfs",
                "paths": [str(tree) for tree in self.trees],
                "user": _user(),
                "addresses": ["127.0.0.1"],
            },
            **changes,
        }
        return StorageAccess(**values)  # type: ignore[arg-type]

    def clear(self) -> None:
        """Remove every snapshot."""
        for place in (tree / ".snapshots" for tree in self.trees):
            for one in sorted(place.iterdir()) if place.is_dir() else ():
                run("btrfs", "subvolume", "delete", one)

    def write(self, volume: Volume, content: bytes) -> None:
        place = Path(volume.exports[0]) / "vm" / "vm-flat.vmdk"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(content)

    def read(self, exposed: Exposed) -> bytes:
        return (Path(exposed.volume_id) / exposed.directory / "vm" / "vm-flat.vmdk").read_bytes()


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


@contextlib.contextmanager
def storage_host(tmp_path: Path, trees: int = 2) -> Iterator[StorageHost]:
    with mounted_btrfs(tmp_path) as tank, running_sshd(tmp_path) as sshd:
        # A name that a shell would take apart.
        paths = [tank / f"vol {number} $(touch x)'\"" for number in range(1, trees + 1)]
        for path in paths:
            run("btrfs", "subvolume", "create", path)
        yield StorageHost(sshd, tuple(paths))
