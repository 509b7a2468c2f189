"""Taking turns in a repository: no restore point is committed while a prune looks for what is needed.

One server sees to that by itself. This is for two agents that do not know of each other: another server
that imported the repository, or an agent that outlived its server.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pipeline.errors import StorageUnavailableError
from pipeline.storage.scale_out import SCHEME


@contextmanager
def turn(location: str, *, alone: bool) -> Iterator[None]:
    """Hold the repository's directory, `alone` or beside others that do not need to be.

    StorageUnavailableError at once when somebody else holds it otherwise. Where the file system locks no
    directories (NFS gives no exclusive lock on one), nothing is held: then one server is what is safe.
    """
    if location.startswith(SCHEME):
        # All of its extents that are online: two agents that differ in one have another in common.
        with ExitStack() as stack:
            for place in sorted(json.loads(location.removeprefix(SCHEME))):
                stack.enter_context(turn(place, alone=alone))
            yield
        return
    if not location.startswith("/"):
        yield  # object storage has no locks either
        return
    handle = os.open(location, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            what = "is committing to" if alone else "is pruning"
            raise StorageUnavailableError(
                f"another repository agent {what} the repository in {location}; try again when it has "
                "ended, and let one server alone use a repository"
            ) from error
        except OSError:
            pass  # said above
        yield
    finally:
        os.close(handle)
