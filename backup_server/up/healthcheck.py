"""Whether a door of this container answers well: `python -m backup_server.up.healthcheck [URL]`, exit status 0 or 1."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from typing import Final

TIMEOUT_S: Final = 4.0


def answers(url: str) -> bool:
    """No redirect to somewhere else, no way through a proxy of the environment."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT_S) as response:
            return bool(response.status == 200)  # noqa: PLR2004 - HTTP's OK
    except (urllib.error.URLError, OSError):
        return False


def main() -> int:
    port = os.environ.get("VMHAUL_PORT", "8470")
    url = sys.argv[1] if len(sys.argv) > 1 else f"http://127.0.0.1:{port}/api/v1/health"
    return 0 if answers(url) else 1


if __name__ == "__main__":
    sys.exit(main())
