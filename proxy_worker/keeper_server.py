"""vmhaul-keeper's socket and command line; see `keeper` for what it does to files.

One request is one line of JSON, and so is its answer:
{"call": "keep", "root": "/srv/backup", "name": "packs/ab/abcd...", "until": 1800000000} -> {"until": ...}
{"call": "until", "root": ..., "name": ...} -> {"until": ...}          0: the object is not kept
{"call": "release"} -> {"released": 3}
An error: {"error": "refused" | "missing" | "failed", "message": ...}
"""

from __future__ import annotations

import argparse
import grp
import json
import math
import os
import pwd
import socket
import socketserver
import sqlite3
import struct
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from proxy_worker.keeper import DAY_S, Clock, Journal, Keeper, Missing, Refused

MAX_LINE_BYTES: Final = 4096
MAX_CLIENTS: Final = 64
CLIENT_TIMEOUT_S: Final = 30.0
TICK_S: Final = 60.0


class Server(socketserver.ThreadingUnixStreamServer):
    """The socket. Clients are root and members of the group, whatever the socket's mode says."""

    daemon_threads = True
    request_queue_size = MAX_CLIENTS

    def __init__(self, path: str, group: str, keeper: Keeper) -> None:
        self.keeper = keeper
        self._group = grp.getgrnam(group)
        self._room = threading.BoundedSemaphore(MAX_CLIENTS)
        Path(path).unlink(missing_ok=True)
        old_mask = os.umask(0o177)
        try:
            super().__init__(path, _Handler)
        finally:
            os.umask(old_mask)
        os.chown(path, 0, self._group.gr_gid)
        Path(path).chmod(0o660)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        del client_address
        credentials = request.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        _, uid, gid = struct.unpack("3i", credentials)
        return (uid == 0 or gid == self._group.gr_gid or self._is_member(uid)) and self._room.acquire(
            blocking=False
        )

    def _is_member(self, uid: int) -> bool:
        try:
            return pwd.getpwuid(uid).pw_name in self._group.gr_mem
        except KeyError:
            return False

    def left(self) -> None:
        self._room.release()


class _Handler(socketserver.StreamRequestHandler):
    timeout = CLIENT_TIMEOUT_S
    server: Server

    def handle(self) -> None:
        try:
            while line := self.rfile.readline(MAX_LINE_BYTES):
                self.wfile.write(json.dumps(self._answer(line)).encode() + b"\n")
        except OSError:
            return
        finally:
            self.server.left()

    def _answer(self, line: bytes) -> dict[str, Any]:
        keeper = self.server.keeper
        try:
            request = json.loads(line)
            call, root, name = request.get("call"), request.get("root"), request.get("name")
            if call == "release":
                return {"released": keeper.release()}
            if not (isinstance(root, str) and isinstance(name, str)):
                raise Refused("root and name must be texts")
            if call == "keep":
                until = request.get("until")
                if (
                    isinstance(until, bool)
                    or not isinstance(until, int | float)
                    or not math.isfinite(until)
                ):
                    raise Refused("until must be a number")
                return {"until": keeper.keep(root, name, float(until))}
            if call == "until":
                return {"until": keeper.until(root, name)}
            raise Refused(f"there is no call {call!r}")
        except Missing as error:
            return {"error": "missing", "message": str(error)}
        except (Refused, ValueError, AttributeError, OverflowError, RecursionError) as error:
            return {"error": "refused", "message": str(error)}
        except (OSError, sqlite3.Error) as error:
            return {"error": "failed", "message": str(error)}


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def serve(options: argparse.Namespace) -> int:
    journal = Journal(Path(options.state))
    clock = Clock(
        journal,
        options.max_gap_days * DAY_S,
        time.time,  # noqa: TID251 - composition root
        lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
        boot_id(),
    )
    keeper = Keeper(
        [os.path.normpath(root) for root in options.repository], journal, clock, options.max_days
    )
    keeper.recover()
    with Server(options.socket, options.group, keeper) as server:
        threading.Thread(target=_tick_for_ever, args=(keeper,), daemon=True).start()
        print(f"vmhaul-keeper listens on {options.socket}", flush=True)  # noqa: T201
        server.serve_forever()
    return 0


def _tick_for_ever(keeper: Keeper) -> None:
    pause = threading.Event()
    told = ""
    while not pause.wait(TICK_S):
        try:
            keeper.release()
        except Refused as error:
            if str(error) != told:
                told = str(error)
                print(told, file=sys.stderr, flush=True)  # noqa: T201


def status(options: argparse.Namespace) -> int:
    journal = Journal(Path(options.state))
    kept = journal.kept()
    print(f"kept: {len(kept)}, next due: {kept[0][2] if kept else 'none'} (Unix time)")  # noqa: T201
    print(f"clock: {journal.fact('doubt') or 'trusted'}")  # noqa: T201
    return 0


def confirm_clock(options: argparse.Namespace) -> int:
    """Takes effect when the keeper starts again."""
    Journal(Path(options.state)).note(confirmed="yes")
    print("the clock is trusted again; restart vmhaul-keeper")  # noqa: T201
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="vmhaul-keeper", description="Keeps objects of repositories immutable."
    )
    commands = parser.add_subparsers(required=True)
    for name, run in (("serve", serve), ("status", status), ("confirm-clock", confirm_clock)):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument(
            "--state", default="/var/lib/vmhaul-keeper", help="directory of the journal"
        )
        if run is serve:
            command.add_argument("--socket", default="/run/vmhaul-keeper/socket")
            command.add_argument("--group", default="vmhaul", help="group whose members may ask")
            command.add_argument("--repository", action="append", required=True, metavar="DIRECTORY")
            command.add_argument("--max-days", type=float, default=3660.0, help="longest time to keep")
            command.add_argument("--max-gap-days", type=float, default=7.0, help="longest time off")
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        parser.error("this program runs as root")
    code: int = options.run(options)
    return code


if __name__ == "__main__":
    sys.exit(main())
