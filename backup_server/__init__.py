"""The backup server: what is to be backed up, when, by which proxy, and what became of it.

Words: a **job** says what to protect and how; a **session** is one run of a job, a restore or a
maintenance; a session has one **task** for each VM disk; an **intent** is a side effect on vSphere that
was written down before it was made.

The SQL database is the truth about all of them. No disk data passes through this package.
"""
