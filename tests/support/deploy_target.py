"""A machine to install proxies on: a real sshd in a mount namespace of its own, where /etc, /var and /opt are private.

No systemd there. A Python with the requirements of vmhaul stands in /opt/ready, so that nothing has to be downloaded.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncssh
import psutil

from tests.support.ports import free_port

PASSWORD = 'it\'s "secret" $HOME'
USER = "ops"
PYTHON = "/opt/ready/python"

_SETUP = r"""
set -eu
top="$1"; base="$2"; site="$3"; config="$4"
mount -t tmpfs tmpfs "$top"
for one in etc var; do
  mkdir "$top/$one.upper" "$top/$one.work"
  mount -t overlay overlay -o "lowerdir=/$one,upperdir=$top/$one.upper,workdir=$top/$one.work" "/$one"
done
mkdir "$top/base" "$top/site"
mount --bind "$base" "$top/base"
mount --bind "$site" "$top/site"
mount -t tmpfs -o mode=755 tmpfs /opt
mkdir -p /opt/ready/site /opt/ready/all
# Its libraries are looked for where it was built: that place has to be open to every user.
parent="$base"
closed=""
while [ "$parent" != / ]; do
  case "$(stat -c %A "$parent")" in *x|*t) ;; *) closed="$parent" ;; esac
  parent="$(dirname "$parent")"
done
if [ -n "$closed" ]; then
  mount -t tmpfs -o mode=755 tmpfs "$closed"
  mkdir -p "$base"
  mount --bind "$top/base" "$base"
fi
ln -s "$base" /opt/ready/base
mount --bind "$top/site" /opt/ready/all
for one in /opt/ready/all/*; do
  case "${one##*/}" in vmhaul*|__editable__*) ;; *) ln -s "$one" /opt/ready/site/ ;; esac
done
cat > /opt/ready/python <<'END'
#!/bin/sh
# A Python as others, but the environments that it makes see what stands ready: pip and all requirements.
python=/opt/ready/base/bin/python3
if [ "$1 $2" != "-m venv" ]; then exec "$python" "$@"; fi
"$python" -m venv --without-pip "$3" || exit
for one in "$3"/lib/python3*/site-packages; do echo /opt/ready/site > "$one/ready.pth"; done
END
chmod 755 /opt/ready/python
useradd --create-home --home-dir /opt/ops --shell /bin/sh ops
printf '%s\n' "ops:$5" | chpasswd
echo 'ops ALL=(ALL:ALL) ALL' > /etc/sudoers.d/ops
chmod 440 /etc/sudoers.d/ops
exec "$6" -D -e -f "$config"
"""


@dataclass(frozen=True)
class Target:
    process: subprocess.Popen[bytes]
    port: int
    host_key: str
    private_key: Path
    """Of root."""
    log: Path

    def run(self, *words: str) -> str:
        """As root, in the target's own view."""
        command = ["nsenter", "--mount", "--target", str(self.process.pid), "--", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def has(self, path: str) -> bool:
        return Path(f"/proc/{self.process.pid}/root{path}").exists()

    def processes(self, *words: str) -> list[psutil.Process]:
        """Those that live in its view and whose command line holds all words."""
        own = Path(f"/proc/{self.process.pid}/ns/mnt").readlink()
        found = []
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, OSError):
                line = " ".join(one.cmdline())
                same = Path(f"/proc/{one.pid}/ns/mnt").readlink() == own
                if same and all(word in line for word in words):
                    found.append(one)
        return found


@contextlib.contextmanager
def deploy_target(tmp_path: Path) -> Iterator[Target]:
    """Lets in root with a key, and `ops` with a password and with sudo that asks for it."""
    directory = tmp_path / "target"
    directory.mkdir(mode=0o700)
    top = directory / "top"
    top.mkdir()
    Path("/run/sshd").mkdir(exist_ok=True)
    host_key = asyncssh.generate_private_key("ssh-ed25519")
    user_key = asyncssh.generate_private_key("ssh-ed25519")
    for name, key in (("host_key", host_key), ("id", user_key)):
        (directory / name).write_bytes(key.export_private_key())
        (directory / name).chmod(0o600)
    (directory / "authorized_keys").write_bytes(user_key.export_public_key())
    port = free_port()
    config = directory / "sshd_config"
    config.write_text(
        f"""Port {port}
ListenAddress 127.0.0.1
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication yes
KbdInteractiveAuthentication no
"""
    )
    log = directory / "log"
    sshd = shutil.which("sshd") or "/usr/sbin/sshd"
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _SETUP, "sh"]
    words += [str(top), sys.base_prefix, sysconfig.get_path("purelib"), str(config), PASSWORD, sshd]
    with log.open("wb") as output:
        process = subprocess.Popen(words, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    target = Target(process, port, host_key.get_fingerprint("sha256"), directory / "id", log)
    try:
        for _ in range(1200):
            if "listening" in log.read_text():
                break
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        else:
            raise AssertionError(f"sshd did not begin to listen: {log.read_text()}")
        yield target
    finally:
        left = [one for one in target.processes() if one.pid != process.pid]
        for one in [*left, psutil.Process(process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait(20)
        psutil.wait_procs(left, timeout=20)
