"""Putting a proxy on a machine, changing its release, taking it off.

| word | meaning |
|---|---|
| machine | where commands run as root: over SSH, or this one |
| places | directories, service and user of one proxy on its machine |
| release | one version of vmhaul in a virtual environment of its own, beside others; `current` leads to one |
| step | something that can be done twice; what a run made is undone when a later step fails |

Nothing here knows the job database: `services/deployments.py` does, and `vmhaul proxy join` works without one.
"""
