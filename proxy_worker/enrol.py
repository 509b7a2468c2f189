"""Being taken in by a server, with a token that works once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import Any, Final

from proxy_worker.config import (
    ENROLMENT_FILE,
    JOIN_TOKEN_FILE,
    Enrolment,
    installed_version,
    local_server_url,
)
from proxy_worker.contracts.ids import ProxyId
from proxy_worker.contracts.join_token import JoinTokenError, is_join_token, parse_join_token
from proxy_worker.errors import EnrolmentError, ServerUnavailableError, SetupError
from proxy_worker.identity import load_or_create_identity
from proxy_worker.private_files import write_private
from proxy_worker.server_api import post_enrolment
from proxy_worker.trust import (
    BROKER_CA_FILE,
    SERVER_CA_FILE,
    check_server_url,
    fetch_ca,
    pinned_context,
)
from transports import system

JOIN_PAUSE_S: Final = 2.0


def join(data_dir: Path, text: str, *, name: str = "", server_url: str = "") -> Enrolment:
    """Enrol with the one text that `vmhaul proxy add` showed. `name`: as the token says by default.

    With `server_url` that address is asked instead of the token's, and known by the machine's own authorities;
    `text` may be a bare secret then, and the name the directory's.

    EnrolmentError when the text is damaged, the server refuses or is another than the token's;
    SetupError for an address that would carry the secret in the clear; ServerUnavailableError when none of
    its addresses answers.
    """
    if server_url:
        check_server_url(server_url)
    if server_url and not is_join_token(text):
        return enrol(data_dir, server_url, text, name or data_dir.name)
    try:
        token = parse_join_token(text)
    except JoinTokenError as error:
        raise EnrolmentError(str(error)) from error
    if server_url:
        return enrol(data_dir, server_url, token.secret, name or token.name)
    last: ServerUnavailableError | None = None
    for url in token.server_urls:
        check_server_url(url)
        try:
            ca_pem = fetch_ca(url, token.ca_sha256) if token.ca_sha256 else ""
            others = tuple(other for other in token.server_urls if other != url)
            return enrol(
                data_dir, url, token.secret, name or token.name, ca_pem=ca_pem, more_urls=others
            )
        except ServerUnavailableError as error:
            last = error
    raise last or EnrolmentError("the join token names no address of a server")


def join_patiently(
    data_dir: Path,
    file: Path,
    name: str,
    *,
    log: Any,
    pause: Callable[[float], object] | None = None,
) -> Enrolment:
    """Join with the token in `file`, which the server may write later and renew: tried until it succeeds."""
    problem = ""
    while True:
        try:
            return join(data_dir, file.read_text(encoding="ascii"), name=name)
        except (OSError, EnrolmentError, ServerUnavailableError) as error:
            if str(error) != problem:
                problem = str(error)
                log.warning("proxy.not-joined", text="not enrolled yet; it tries again", error=problem)
            (pause or Event().wait)(JOIN_PAUSE_S)


def enrol(
    data_dir: Path,
    server_url: str,
    token: str,
    name: str,
    *,
    ca_pem: str = "",
    more_urls: tuple[str, ...] = (),
) -> Enrolment:
    """Send our public keys, keep what the server answers. `ca_pem`: the authority that it is known by.

    EnrolmentError when the server refuses, ServerUnavailableError when it does not answer. The caller has
    looked at the address (`trust.check_server_url`): this function enrols a local proxy as well.
    """
    system.make_private_directory(data_dir)
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
        pinned_context(ca_pem) if ca_pem else None,
    )
    try:
        enrolment = Enrolment(
            proxy_id=ProxyId(str(answer["proxy_id"])),
            name=name,
            server_url=server_url,
            server_key=str(answer["server_key"]),
            broker_url=str(answer["broker_url"]),
            more_server_urls=more_urls,
        )
        broker_ca_pem = str(answer.get("broker_ca_pem") or "")
        bytes.fromhex(enrolment.server_key)
    except (KeyError, ValueError) as error:
        raise EnrolmentError(
            f"the answer of {server_url} is not that of a vmhaul server ({error!r}); check the address"
        ) from error
    for file, pem in ((SERVER_CA_FILE, ca_pem), (BROKER_CA_FILE, broker_ca_pem)):
        if pem:
            write_private(data_dir / file, pem.encode())
        else:
            # of another server, or of the same before it had none
            (data_dir / file).unlink(missing_ok=True)
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
    # Only now: had the answer been lost, the same token would have been tried again.
    path.unlink(missing_ok=True)
    return enrolment
