"""What the database says, in the words of the doors."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from backup_server.errors import InvalidError, UnavailableError, VmhaulError

DatabaseError = sa.exc.DBAPIError
_SAID_CHARS: Final = 200


def translated(error: BaseException) -> VmhaulError | None:
    """For whoever asked; None for what is a defect of ours."""
    if isinstance(error, sa.exc.DataError):
        # PostgreSQL keeps no NUL in a text and has an end of its numbers; SQLite takes both.
        return InvalidError(
            "the request holds a NUL character or a number that is too large, which the job database does not keep: "
            "leave it out"
        )
    if isinstance(error, (sa.exc.OperationalError, sa.exc.InterfaceError)):
        said = " ".join(str(error.orig).split())[:_SAID_CHARS]
        return UnavailableError(
            f"the job database does not answer ({said}); see that it runs, then try again"
        )
    return None
