"""Composition root of the supervisor: `python -m backup_server.up --options-fd N`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from backup_server import broker
from backup_server.errors import SettingsError
from backup_server.up.children import ChildSpec
from backup_server.up.lock import UpLock
from backup_server.up.options import UpError, UpOptions, resolve
from backup_server.up.supervisor import Supervisor, make_directories

BROKER_STOP_S: Final = 10.0


def main() -> int:
    """Exit code: 0 after a stop that was asked for, 1 when it could not start."""
    parser = argparse.ArgumentParser(prog="backup_server.up")
    parser.add_argument("--options-fd", type=int, required=True)
    with os.fdopen(parser.parse_args().options_fd) as file:
        given = json.load(file)
    try:
        return _run(given)
    except UpError as error:
        print(f"vmhaul: {error}", file=sys.stderr)  # noqa: T201 - the supervisor's own voice
        return 1


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the supervisor's own voice


def _broker(options: UpOptions) -> ChildSpec:
    try:
        embedded = broker.prepare(options.data_dir / "broker", options.run_dir, _network_door(options))
    except SettingsError as error:
        raise UpError(str(error)) from error
    return ChildSpec(
        name="broker",
        argv=embedded.command,
        stop_s=BROKER_STOP_S,
        ready=embedded.answers,
        mend=embedded.set_data_aside,
    )


def _network_door(options: UpOptions) -> broker.NetworkDoor | None:
    """The broker's door for proxies on other machines; it shows the same certificate as the server's."""
    if not options.proxies_host:
        return None
    from backup_server import server_certificates

    files = server_certificates.ensure(
        options.data_dir / "tls",
        server_certificates.names_of(options.proxies_host, options.proxies_names),
        datetime.now(UTC),  # noqa: TID251 - the composition root owns the clock
    )
    return broker.NetworkDoor(
        host=options.proxies_host,
        port=options.proxies_broker_port,
        certificate_file=files.certificate_file,
        key_file=files.key_file,
        ca_file=files.ca_file,
    )


def _run(given: dict[str, object]) -> int:
    data_dir = Path(str(given["data_dir"]))
    # Whatever we and our children make is for this user only, also in a directory that others may enter.
    os.umask(0o077)
    make_directories(data_dir)
    with UpLock(data_dir / "run"):
        # Ports are looked at under the lock, so that a second `up` hears of the first one instead.
        resolved = resolve(given)
        child = None if resolved.broker else _broker(resolved)
        supervisor = Supervisor(options=resolved, broker=child, clock=time.monotonic, say=_say)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: supervisor.stopping.set())
        supervisor.run()
    _say("vmhaul is down.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
