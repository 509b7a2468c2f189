"""Orders for proxies of the release before: what they do not know is left out.

An order with a field that its reader does not know is refused, so that nothing is silently not done. What is
left out here only makes the work better, never right.
"""

from __future__ import annotations

from dataclasses import replace

from proxy_worker.contracts.messages import TaskRequest


def known_to_0_2(request: TaskRequest) -> TaskRequest:
    """The request without what release 0.3.0 added: where datastores lie, the trial of change tracking,
    other modes to go on in, preferred networks.
    """
    backup, restore = request.backup, request.restore
    if backup is not None:
        backup = replace(
            backup,
            disk=replace(backup.disk, storage=None),
            known_changes="",
            sampled_blocks=0,
            sample_when_unchanged=False,
        )
    if restore is not None and restore.target_disk is not None:
        restore = replace(restore, target_disk=replace(restore.target_disk, storage=None))
    return replace(request, backup=backup, restore=restore, fallback_modes=(), preferred_networks=())
