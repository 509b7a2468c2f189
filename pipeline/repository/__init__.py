"""The backup repository: format, writing, reading, restore points, check and prune.

Words as in docs/reference/repository-format.md: **blob**, **pack**, **index**, **disk map**, **restore
point**, **work record** (a disk that is being backed up), **doomed pack** (out of the index, deleted
later). The repository is the truth about data: everything a restore needs is in it, and a password.

It does not lock: any number of writers may work at once; commits and prunes are for one process.
"""

from pipeline.crypto.kdf import KdfCost
from pipeline.repository.check import CheckReport
from pipeline.repository.prune import PruneReport
from pipeline.repository.repository import Repository

__all__ = ["CheckReport", "KdfCost", "PruneReport", "Repository"]
