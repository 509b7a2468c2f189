"""Small files that only their owner may read, replaced as a whole.

On Windows that rests on the directory, which `system.make_private_directory` closed.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from transports import system


def write_private(path: Path, data: bytes) -> None:
    """Durable under its name when this returns; readers see the old content or the new."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | system.OPEN_FLAGS, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        system.replace_file(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    system.sync_directory(path.parent)
