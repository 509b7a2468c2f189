"""Whether this machine's worker sends heartbeats: `python -m proxy_worker.healthcheck URL`, exit status 0 or 1.

URL: its own figures, where `metrics_listen` has them.
"""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

HEARTBEAT: Final = "vmhaul_worker_heartbeat_timestamp_seconds"
SILENT_S: Final = 60.0
TIMEOUT_S: Final = 4.0


def is_heard(text: str, now_s: float) -> bool:
    """Whether these figures tell of a heartbeat within the last minute."""
    samples = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == HEARTBEAT
    ]
    return bool(samples) and abs(now_s - samples[0]) < SILENT_S


def main() -> int:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(sys.argv[1], timeout=TIMEOUT_S) as response:
            text = response.read().decode()
    except (urllib.error.URLError, OSError, IndexError):
        return 1
    return 0 if is_heard(text, time.time()) else 1  # noqa: TID251 - composition root


if __name__ == "__main__":
    sys.exit(main())
