"""Orders for proxies of the release before: what they do not know is left out.

An order with a field that its reader does not know is refused, so that nothing is silently not done. What is
left out here only makes the work better, never right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from proxy_worker.contracts.messages import DownMessage, LeaseAnswer, RateOrder, TaskRequest

PRESENT: Final = (0, 5)
_RELEASE: Final = re.compile(r"(\d{1,6})\.(\d{1,6})(?!\d)")


def release_of(version: str | None) -> tuple[int, int]:
    """Of what a worker says of itself. One that runs from a directory that was never installed ("unknown") is of the
    present release.
    """
    found = _RELEASE.match(version or "")
    return (int(found[1]), int(found[2])) if found else PRESENT


def request_for(request: TaskRequest, version: str | None) -> TaskRequest:
    """The order as a worker of that version understands it."""
    release = release_of(version)
    if release < (0, 4):
        request = replace(request, lease_s=0.0, rate=None)
        if request.backup is not None:
            # It reads the whole disk then; blocks that are stored already are not stored again.
            alone = replace(
                request.backup, continue_work="", continue_change_id="", continue_changes=""
            )
            request = replace(request, backup=alone)
    return known_to_0_2(request) if release < (0, 3) else request


def down_for(messages: Iterable[DownMessage], version: str | None) -> list[DownMessage]:
    """Messages of the down stream as a worker of that version understands them."""
    if release_of(version) >= (0, 4):
        return list(messages)
    return [
        replace(message, sequence=0) if isinstance(message, LeaseAnswer) else message
        for message in messages
        if not isinstance(message, RateOrder)
    ]


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
            continue_work="",
            continue_change_id="",
            continue_changes="",
        )
    if restore is not None and restore.target_disk is not None:
        restore = replace(restore, target_disk=replace(restore.target_disk, storage=None))
    return replace(
        request,
        backup=backup,
        restore=restore,
        fallback_modes=(),
        preferred_networks=(),
        lease_s=0.0,
        rate=None,
    )
