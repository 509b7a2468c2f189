"""Flower as a child: reads the broker's address from a file, so that no password stands in arguments."""

from __future__ import annotations

import argparse
from pathlib import Path

import celery

from backup_server.broker import SOCKET_NAME
from backup_server.up.options import HOST, read_json
from proxy_worker.contracts.names import celery_socket_url


def main() -> None:
    parser = argparse.ArgumentParser(prog="backup_server.up.flower")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--settings", type=Path, required=True)
    arguments = parser.parse_args()
    settings = read_json(arguments.settings)
    url = settings.get("broker") or celery_socket_url(str(arguments.data / "run" / SOCKET_NAME))
    app = celery.Celery("vmhaul", broker=url, set_as_current=True)
    app.start(
        [
            "flower",
            f"--address={HOST}",
            f"--port={settings['flower_port']}",
            # Looking only: its buttons would go around the job database.
            "--read_only=True",
            "--inspect_timeout=2000",
        ]
    )


if __name__ == "__main__":
    main()
