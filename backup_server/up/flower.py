"""Flower as a child: reads the broker's address from a file, so that no password stands in arguments."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import celery
from flower.utils.broker import RedisSocket

from backup_server.up.options import FLOWER_FILE, HOST, read_json


def log_in_on_the_socket() -> None:
    """Work around Flower 2.2: on a Unix socket its page of queues gives the password without the user."""
    original = RedisSocket.__init__

    def init(self: Any, *args: Any, **given: Any) -> None:
        original(self, *args, **given)
        self.redis.connection_pool.connection_kwargs["username"] = self.username

    RedisSocket.__init__ = init


def main() -> None:
    parser = argparse.ArgumentParser(prog="backup_server.up.flower")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--settings", type=Path, required=True)
    arguments = parser.parse_args()
    settings = read_json(arguments.settings)
    url = read_json(arguments.data / "run" / FLOWER_FILE)["broker_url"]
    log_in_on_the_socket()
    app = celery.Celery("vmhaul", broker=url, set_as_current=True)
    # As in the proxies and in the server's outbox: queues have one step.
    app.conf.broker_transport_options = {"priority_steps": [0]}
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
