"""Stands in for the data mover: does what the directives in the task's title say.

Directives: sleep=<s>, crash=<attempt>, crash-always, outcome=<outcome>, need-secrets, deaf, print-junk,
hold-pipes. It writes one line "<task> <attempt> <pid>" to the file named by its first argument when it
begins.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


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
    report = {"schema_version": 1, "task_id": task, "attempt": attempt}
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


with contextlib.suppress(BrokenPipeError):
    main()
