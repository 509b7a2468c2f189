"""Tags of VMs, over the vAPI REST door; SOAP does not know them.

The door wants user name and password, so only a client with a Login can ask; a standalone host has no
such door at all.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

import httpx

from transports.vsphere.model import Login
from transports.vsphere.session import Session

_BASE: Final = "/rest/com/vmware/cis"
_TAGGING: Final = f"{_BASE}/tagging"
_SESSION_HEADER: Final = "vmware-api-session-id"
_BATCH: Final = 100


class TagsUnknownError(Exception):
    """The server has no tagging service for us; the message says why."""


def vm_tags(session: Session) -> dict[str, tuple[str, ...]]:
    """Tags by VM moref. Each tag stands with its bare name and as "category:name", so that a job can
    name either. TagsUnknownError when the server has no tagging service or refuses it.
    """
    login = session.login
    if login is None:
        raise TagsUnknownError("tags need a user name and password")
    with session.http() as client:
        try:
            headers = {_SESSION_HEADER: _open(client, login)}
            try:
                return _read(client, headers)
            finally:
                client.delete(f"{_BASE}/session", headers=headers)
        except (httpx.HTTPError, KeyError, TypeError, ValueError) as error:
            raise TagsUnknownError(
                f"the tagging service did not answer as expected: {error}"
            ) from error


def _open(client: httpx.Client, login: Login) -> str:
    answer = client.post(f"{_BASE}/session", auth=(login.username, login.password.reveal()))
    return str(_value(answer))


def _read(client: httpx.Client, headers: dict[str, str]) -> dict[str, tuple[str, ...]]:
    names: dict[str, tuple[str, str]] = {}
    categories: dict[str, str] = {}
    for tag_id in _value(client.get(f"{_TAGGING}/tag", headers=headers)) or []:
        tag = _value(client.get(f"{_TAGGING}/tag/id:{tag_id}", headers=headers))
        category_id = str(tag["category_id"])
        if category_id not in categories:
            answer = client.get(f"{_TAGGING}/category/id:{category_id}", headers=headers)
            categories[category_id] = str(_value(answer)["name"])
        names[str(tag_id)] = (str(tag["name"]), f"{categories[category_id]}:{tag['name']}")
    tags: dict[str, set[str]] = defaultdict(set)
    for tag_id, vm in _attachments(client, headers, list(names)):
        tags[vm].update(names[tag_id])
    return {vm: tuple(sorted(found)) for vm, found in tags.items()}


def _attachments(
    client: httpx.Client, headers: dict[str, str], tag_ids: list[str]
) -> list[tuple[str, str]]:
    """(tag id, VM moref) pairs."""
    found: list[tuple[str, str]] = []
    for start in range(0, len(tag_ids), _BATCH):
        batch = tag_ids[start : start + _BATCH]
        answer = client.post(
            f"{_TAGGING}/tag-association",
            params={"~action": "list-attached-objects-on-tags"},
            json={"tag_ids": batch},
            headers=headers,
        )
        if answer.status_code in {httpx.codes.NOT_FOUND, httpx.codes.BAD_REQUEST}:
            found.extend(_attachments_singly(client, headers, batch))
            continue
        for entry in _value(answer) or []:
            found.extend((str(entry["tag_id"]), vm) for vm in _vms(entry["object_ids"]))
    return found


def _attachments_singly(
    client: httpx.Client, headers: dict[str, str], tag_ids: list[str]
) -> list[tuple[str, str]]:
    """The same, one tag at a time, for servers without the batch call."""
    found: list[tuple[str, str]] = []
    for tag_id in tag_ids:
        answer = client.post(
            f"{_TAGGING}/tag-association/id:{tag_id}",
            params={"~action": "list-attached-objects"},
            headers=headers,
        )
        found.extend((tag_id, vm) for vm in _vms(_value(answer)))
    return found


def _vms(objects: list[dict[str, Any]] | None) -> list[str]:
    return [str(entry["id"]) for entry in objects or [] if entry.get("type") == "VirtualMachine"]


def _value(answer: httpx.Response) -> Any:
    answer.raise_for_status()
    return answer.json()["value"]
