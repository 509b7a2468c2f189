"""What containers have to know of each other without telling anybody: `python -m backup_server.up.container_secrets DIR`.

Run once as root before the others (docker-compose.yml's `init`). Each directory below DIR is a volume that one service
mounts; what lies there already stays.

| directory | owner | files |
|---|---|---|
| postgres | its user | password |
| redis | its user | redis.conf, server.pem, server.key, ca.pem |
| redis-ca | anybody | ca.pem |
| server | ours | vmhaul_database, vmhaul_broker |
| flower | ours | login |
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pwd
import secrets
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote

from backup_server import broker, server_certificates

USER: Final = "vmhaul"
REDIS_UID: Final = 999
"""Of the public image's user; PostgreSQL's image reads its file as root."""
CA_FILE: Final = "/etc/vmhaul/redis-ca/ca.pem"
"""Where server and Flower see it."""
_CONFIGURATION: Final = """\
port 0
tls-port 6379
tls-cert-file /secrets/server.pem
tls-key-file /secrets/server.key
tls-ca-cert-file /secrets/ca.pem
tls-auth-clients no
dir /data
appendonly yes
appendfsync everysec
save ""
{bounds}
user default off
user vmhaul on sanitize-payload ~* &* +@all #{digest}
"""


def make(directory: Path, *, now: datetime, give: Callable[[Path, int], None], own: int) -> list[str]:
    """Names of the files that were made. `give` makes a file its reader's alone."""
    made: list[str] = []

    def write(name: str, data: bytes, owner: int) -> None:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o400)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        give(path, owner)
        made.append(name)

    if not (directory / "server" / "vmhaul_database").exists():
        password = secrets.token_hex(32)
        write("postgres/password", password.encode(), 0)
        url = f"postgresql+psycopg://vmhaul:{password}@postgres/vmhaul"
        # Last: while it is not there, the pair is made anew.
        write("server/vmhaul_database", url.encode(), own)
    if not (directory / "server" / "vmhaul_broker").exists():
        password = secrets.token_hex(32)
        digest = hashlib.sha256(password.encode()).hexdigest()
        with tempfile.TemporaryDirectory() as scratch:
            # For as long as its authority: the key of that is kept nowhere, so nobody could renew it.
            files = server_certificates.ensure(
                Path(scratch), ("redis",), now, life=server_certificates.CA_LIFE
            )
            authority = files.ca_file.read_bytes()
            write("redis/server.pem", files.certificate_file.read_bytes(), REDIS_UID)
            write("redis/server.key", files.key_file.read_bytes(), REDIS_UID)
        write("redis/ca.pem", authority, REDIS_UID)
        write("redis-ca/ca.pem", authority, own)
        # Which container runs on which machine is not known; they share this one in most cases.
        bounds = "\n".join((*broker.BOUNDS, f"maxmemory {broker.default_memory_bytes()}"))
        configuration = _CONFIGURATION.format(digest=digest, bounds=bounds)
        write("redis/redis.conf", configuration.encode(), REDIS_UID)
        url = f"rediss://vmhaul:{password}@redis:6379/0?ssl_cert_reqs=required&ssl_ca_certs={quote(CA_FILE, safe='')}"
        write("server/vmhaul_broker", url.encode(), own)
    if not (directory / "flower" / "login").exists():
        write("flower/login", f"vmhaul:{secrets.token_urlsafe(18)}".encode(), own)
    return made


def _give(path: Path, owner: int) -> None:
    path.parent.chmod(0o755)
    os.chown(path, owner, -1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="backup_server.up.container_secrets")
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args().directory
    own = pwd.getpwnam(USER).pw_uid
    made = make(directory, now=datetime.now(UTC), give=_give, own=own)  # noqa: TID251 - composition root
    print("made " + (", ".join(made) if made else "nothing, all is there"))  # noqa: T201 - for the log
    return 0


if __name__ == "__main__":
    sys.exit(main())
