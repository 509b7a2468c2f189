"""The backup proxy: a Celery worker that runs one data-mover process for each task it is given.

Words: a **task** is one VM disk in one session; a **task slot** is the room for one task on a proxy; an
**attempt** counts how often a task was handed out and is its fencing token; a **lease** is the time for
which the server holds a task as running on a proxy without hearing from it.

The proxy holds no password of vCenter, database or repository. What it may see and do ends with the
lease of the task it was given for.
"""
