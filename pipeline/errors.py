"""What can go wrong between a transport mode and a repository, by what the caller can do about it.

Integrity errors are never retried and never swallowed.
"""

from __future__ import annotations


class PipelineError(Exception):
    """Root of this package's errors. The message says what, which object, and what to do now."""


class TransientPipelineError(PipelineError):
    """The same call may succeed when repeated: storage did not answer, a device hiccuped."""


class PermanentPipelineError(PipelineError):
    """Repeating changes nothing until somebody acts."""


class IntegrityError(PipelineError):
    """Stored bytes are not what was written: damaged, truncated, replaced or missing."""


class NewerEpochError(IntegrityError):
    """Says of itself that it was written with a later data key than those that are open here. Where the
    data key was changed meanwhile, the same goes well with the key material of now.
    """


class CancelledError(PipelineError):
    """Stopped because the caller asked for it. What was durable by then stays usable."""


class StorageUnavailableError(TransientPipelineError):
    """The storage did not answer or reported an I/O error."""


class StorageFullError(PermanentPipelineError):
    """No space or quota left."""


class StoragePermissionError(PermanentPipelineError):
    """The storage refuses this user."""


class StorageMissingError(PermanentPipelineError):
    """The place itself is not there: a directory that does not exist, a mount that is gone."""


class ObjectNotFoundError(PermanentPipelineError):
    """No object of this name."""


class ObjectExistsError(PermanentPipelineError):
    """An object of this name exists, and objects are never replaced by `put`."""


class ObjectRetainedError(PermanentPipelineError):
    """The storage keeps the object until a time that is still to come; it is immutable until then."""


class RepositoryNotFoundError(PermanentPipelineError):
    """The storage holds no vmhaul repository."""


class RepositoryExistsError(PermanentPipelineError):
    """The storage holds a repository already."""


class WrongPasswordError(PermanentPipelineError):
    """No key of the repository opens with this password."""


class KeyRefusedError(PermanentPipelineError):
    """A key operation that would lock somebody out, or that this repository cannot do yet."""


class WrongRepositoryError(PermanentPipelineError):
    """Another repository than the expected one, or a key of another one."""


class UnsupportedFormatError(PermanentPipelineError):
    """The repository was written by a newer vmhaul, or with a feature that this one does not know."""


class RestorePointNotFoundError(PermanentPipelineError):
    """No restore point of this id."""


class RestorePointRefusedError(PermanentPipelineError):
    """A restore point that cannot be committed: incomplete, forgotten, or different from the one that
    has its id.
    """
