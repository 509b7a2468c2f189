"""`vmhaul repository`: where restore points are kept. One file for each group of commands; every one
registers its own, in the order of the help.
"""

from __future__ import annotations

from backup_server.cli.door import noun
from backup_server.cli.repository import (
    add,
    edit,
    extent,
    key,
    maintenance,
    rebuild_index,
    recover,
    repair,
    show,
)

app = noun("Repositories: where restore points are kept.")
add.register(app)
show.register(app)
edit.register(app)
maintenance.register(app)
repair.register(app)
key.register(app)
extent.register(app)
recover.register(app)
rebuild_index.register(app)
