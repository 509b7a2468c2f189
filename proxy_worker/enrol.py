"""Being taken in by a server, with a token that works once."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from proxy_worker.config import (
    ENROLMENT_FILE,
    JOIN_TOKEN_FILE,
    Enrolment,
    installed_version,
    local_server_url,
)
from proxy_worker.contracts.ids import ProxyId
from proxy_worker.errors import EnrolmentError, SetupError
from proxy_worker.identity import load_or_create_identity
from proxy_worker.private_files import write_private
from proxy_worker.server_api import post_enrolment


def enrol(data_dir: Path, server_url: str, token: str, name: str) -> Enrolment:
    """Send our public keys, keep what the server answers.

    EnrolmentError when the server refuses, ServerUnavailableError when it does not answer.
    """
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    identity = load_or_create_identity(data_dir)
    answer = post_enrolment(
        server_url,
        {
            "token": token,
            "name": name,
            "signing_key": identity.signing_public,
            "sealing_key": identity.sealing_public,
            "version": installed_version(),
        },
    )
    try:
        enrolment = Enrolment(
            proxy_id=ProxyId(str(answer["proxy_id"])),
            name=name,
            server_url=server_url,
            server_key=str(answer["server_key"]),
            broker_url=str(answer["broker_url"]),
        )
        bytes.fromhex(enrolment.server_key)
    except (KeyError, ValueError) as error:
        raise EnrolmentError(
            f"the answer of {server_url} is not that of a vmhaul server ({error!r}); check the address"
        ) from error
    write_private(data_dir / ENROLMENT_FILE, json.dumps(asdict(enrolment), indent=1).encode())
    return enrolment


def enrol_with_file(data_dir: Path) -> Enrolment | None:
    """Enrol a local proxy with the token that its server left in the data directory; None without one."""
    path = data_dir / JOIN_TOKEN_FILE
    try:
        token = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    server_url = local_server_url(data_dir)
    if server_url is None:
        raise SetupError(
            f"there is a join token in {data_dir} but no server runs from that data directory; "
            "start it with `vmhaul up`"
        )
    enrolment = enrol(data_dir, server_url, token, data_dir.absolute().name)
    # The token is spent; the server removes the file as well.
    path.unlink(missing_ok=True)
    return enrolment
