"""Messages as released versions wrote them. A file that was released is never changed; when one no
longer decodes, the code is wrong.

The signing key is the bytes 0 to 31, the sealing key 32 zeros, the time 1800000000.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from nacl.public import PrivateKey
from nacl.signing import SigningKey

from proxy_worker.contracts.codec import MESSAGE_TYPES, from_json, to_json, unseal_secrets
from proxy_worker.contracts.envelope import Opener
from proxy_worker.contracts.messages import SealedSecrets, TaskSecrets

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("*/*.json"))
KEY = SigningKey(bytes(range(32)))


def read(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text())
    return data


def message_class(name: str) -> Any:
    return {**MESSAGE_TYPES, "TaskSecrets": TaskSecrets}[name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_it_decodes_and_says_the_same(path: Path) -> None:
    data = read(path)
    message = from_json(message_class(data["type"]), data["body"])
    assert _common(to_json(message), data["body"]) == data["body"]


def _common(written: Any, stored: Any) -> Any:
    """`written` without the fields that later releases added; they come with their defaults."""
    if isinstance(stored, dict):
        return {name: _common(written[name], stored[name]) for name in stored}
    if isinstance(stored, list):
        assert len(written) == len(stored)
        return [_common(one, other) for one, other in zip(written, stored, strict=True)]
    return written


@pytest.mark.parametrize(
    "path", [path for path in FILES if "envelope" in read(path)], ids=lambda path: path.stem
)
def test_its_envelope_opens(path: Path) -> None:
    data = read(path)
    opener = Opener(
        "b9c1d1e0-7a52-4c6f-8a49-90a5d3a1ee03" if "TaskRequest" in data["type"] else _addressee(data),
        lambda _: KEY.verify_key,
        lambda: 1_800_000_000.0,
    )
    cls = message_class(data["type"])
    message = opener.open(data["envelope"], expect={cls}).message
    assert message == from_json(cls, data["body"])


def _addressee(data: dict[str, Any]) -> str:
    down = {
        "LeaseAnswer",
        "LeasesHeld",
        "ResultAck",
        "SealedSecrets",
        "RateOrder",
        "RescanOrder",
        "PresentAnswer",
        "WithdrawAnswer",
        "DatastoresAnswer",
    }
    return "b9c1d1e0-7a52-4c6f-8a49-90a5d3a1ee03" if data["type"] in down else "server"


def test_the_sealed_secrets_open() -> None:
    sealed = from_json(SealedSecrets, read(HERE / "1" / "sealed-secrets.json")["body"])
    secrets = unseal_secrets(sealed, PrivateKey(bytes(32)))
    assert secrets == from_json(TaskSecrets, read(HERE / "1" / "task-secrets.json")["body"])


def test_every_kind_of_message_is_stored() -> None:
    assert {read(path)["type"] for path in FILES} == {*MESSAGE_TYPES, "TaskSecrets"}


def test_the_reference_names_every_message_and_field() -> None:
    text = (HERE.parents[2] / "docs" / "reference" / "messages.md").read_text()
    for name, cls in {**MESSAGE_TYPES, "TaskSecrets": TaskSecrets}.items():
        section = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", text, re.DOTALL | re.MULTILINE)
        assert section, f"no section about {name}"
        described = set(re.findall(r"^\| `(\w+)` \|", section[1], re.MULTILINE))
        assert described == set(cls.__dataclass_fields__) - {"schema_version"}, name
