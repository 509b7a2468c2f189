"""`python -m tests.support.moto_server`, with moto's options: S3 as moto imitates it, but that a condition and the write
for which it stands are one, as in S3. moto looks and writes in two steps, and somebody else may write in between.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable
from typing import Any

from moto import server


class Application(server.DomainDispatcherApplication):
    """Conditional requests one after the other."""

    _turn = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        length = environ.get("CONTENT_LENGTH")
        if "HTTP_IF_NONE_MATCH" not in environ or not length:
            return super().__call__(environ, start_response)
        # Read before: whoever sends slowly keeps nobody waiting.
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(length)))
        with self._turn:
            return super().__call__(environ, start_response)


if __name__ == "__main__":
    server.DomainDispatcherApplication = Application
    server.main()
