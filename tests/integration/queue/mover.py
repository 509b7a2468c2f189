"""Stands in for the data mover: does what the directives in the task's title say.

Directives: moves (see `move`), sleep=<s>, crash=<attempt>, crash-always, outcome=<outcome>, need-secrets,
all-secrets, deaf, print-junk,
hold-pipes. It writes one line "<task> <attempt> <pid>" to the file named by its first argument when it
begins.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

PIECE_BYTES = 32 << 10


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def move(request: dict[str, Any], report: dict[str, Any]) -> None:
    """Take bytes for the target as fast as the server lets us, until the file "<marks>.end.<task>" is there. Lines of
    time and total go to "<marks>.moved.<task>".
    """
    from proxy_worker.contracts.codec import from_json
    from proxy_worker.contracts.messages import RateLimit
    from proxy_worker.mover_lines import parse_rate
    from proxy_worker.throttle import Side, Throttle

    first = request.get("rate")
    throttle = Throttle(None if first is None else from_json(RateLimit, first))

    def listen() -> None:
        for line in sys.stdin:
            message = json.loads(line)
            if "rate" in message:
                throttle.set(parse_rate(message))

    threading.Thread(target=listen, daemon=True).start()
    end = Path(f"{sys.argv[1]}.end.{request['task_id']}")
    total, said_s = 0, 0.0
    with Path(f"{sys.argv[1]}.moved.{request['task_id']}").open("a") as moved:
        while not end.exists():
            throttle.pass_(Side.TARGET, PIECE_BYTES)
            total += PIECE_BYTES
            time.sleep(0.002)
            if time.time() - said_s < 0.1:
                continue
            said_s = time.time()
            moved.write(f"{said_s} {total}\n")
            moved.flush()
            figures = {"total_bytes": 1 << 40, "done_bytes": total, "bytes_per_s": 3e6}
            limit = throttle.limit
            figures["rate_bytes_per_s"] = 0 if limit is None else limit.bytes_per_s
            more = {"phase": "reading", "read_bytes": total, "stored_bytes": total, "bottleneck": ""}
            say(progress={**report, **figures, **more})


def main() -> None:
    order = json.loads(sys.stdin.readline())
    request = order["request"]
    task, attempt = request["task_id"], request["attempt"]
    with Path(sys.argv[1]).open("a") as file:
        file.write(f"{task} {attempt} {os.getpid()}\n")
    words = request["title"].split()
    options = dict(word.split("=", 1) for word in words if "=" in word)
    if "deaf" in words:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "print-junk" in words:
        print("not json", flush=True)
        print("[1, 2]", flush=True)
    if "crash-always" in words or int(options.get("crash", 0)) == attempt:
        print("something broke", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if "hold-pipes" in words:
        subprocess.Popen(["sleep", "600"])  # holds our standard output open
    key = order["secrets"]["repository_key"]
    if "need-secrets" in words:
        say(need="secrets")
        key += json.loads(sys.stdin.readline())["secrets"]["repository_key"]
    if "all-secrets" in words:
        held = order["secrets"]
        key += f"|{held['storage_secrets']}|{held['vsphere']['clone_ticket']}"
    report = {"schema_version": 1, "task_id": task, "attempt": attempt}
    if "moves" in words:
        move(request, report)
    begun = time.monotonic()
    length = float(options.get("sleep", 0))
    while time.monotonic() - begun < length:
        time.sleep(0.05)
        say(
            progress={
                **report,
                "phase": "reading",
                "total_bytes": 1000,
                "done_bytes": int(1000 * (time.monotonic() - begun) / length),
                "read_bytes": 10,
                "stored_bytes": 5,
                "bytes_per_s": 1e6,
                "bottleneck": "source",
            }
        )
    say(
        result={
            **report,
            "outcome": options.get("outcome", "success"),
            "reason": "",
            "read_mode": "full",
            "map_root": "ab" * 32,
            "sha256": key,
            "mode": request["mode"],
            "stats": None,
        }
    )


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
