"""Flower, as a child of the supervisor or by itself.

    python -m backup_server.up.flower --data DIR --settings FILE
    python -m backup_server.up.flower --broker-file FILE --listen ADDRESS:PORT --login-file FILE

Addresses with passwords are read from files, so that none stands in arguments. It only looks: its buttons would go
around the job database.
"""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path
from typing import Any, Final

import celery
from kombu.utils.url import parse_url

from backup_server.up.options import FLOWER_FILE, HOST, UpError, parse_listen, read_json
from backup_server.up.supervisor import is_loopback

FILE_LIMIT_S: Final = 120.0
_EMPTY_WORDS: Final = 2


def arguments_of(host: str, port: int, login: str) -> list[str]:
    """Flower's own. UpError where everybody on the network could look."""
    if not login and not is_loopback(host):
        raise UpError(
            f"Flower on {host} would show names of VMs and proxies to everybody: give --login-file, a file with USER:PASSWORD"
        )
    words = [
        "flower",
        f"--address={host}",
        f"--port={port}",
        "--read_only=True",
        "--inspect_timeout=2000",
        "--purge_offline_workers=86400",
        "--tasks_columns=name,uuid,state,args,result,received,started,runtime,worker",
    ]
    return [*words, f"--basic_auth={login}"] if login else words


def tls_of(broker_url: str) -> dict[str, Any] | None:
    """By what the broker is known. Celery reads it in the URL; the part of Flower that counts what waits in queues asks
    for it apart.
    """
    if not broker_url.startswith("rediss:"):
        return None
    tls: dict[str, Any] | None = parse_url(broker_url).get("ssl")
    return tls


def _wait_for(path: Path) -> Any:
    pause = threading.Event()
    for _ in range(int(FILE_LIMIT_S)):
        value = read_json(path)
        if value is not None:
            return value
        pause.wait(1.0)
    raise UpError(f"{path} did not come: the server writes it when it has started")


def _login(path: Path | None) -> str:
    if path is None:
        return ""
    text = path.read_text(encoding="utf-8").strip()
    if len([part for part in text.partition(":")[::2] if part]) < _EMPTY_WORDS:
        raise UpError(f"{path} does not hold USER:PASSWORD")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(prog="backup_server.up.flower")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--settings", type=Path)
    parser.add_argument("--broker-file", type=Path)
    parser.add_argument("--listen")
    parser.add_argument("--login-file", type=Path)
    given = parser.parse_args()
    try:
        if given.broker_file:
            host, port = parse_listen(given.listen)
            broker = _wait_for(given.broker_file)["broker_url"]
        else:
            host, port = HOST, int(read_json(given.settings)["flower_port"])
            broker = read_json(given.data / "run" / FLOWER_FILE)["broker_url"]
        words = arguments_of(host, port, _login(given.login_file))
    except (UpError, OSError) as error:
        print(f"Flower: {error}", file=sys.stderr)  # noqa: T201 - for who started it
        return 1
    app = celery.Celery("vmhaul", broker=broker, set_as_current=True)
    app.conf.broker_use_ssl = tls_of(broker)
    app.start(words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
