from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.public import PrivateKey

from proxy_worker.contracts.codec import (
    MESSAGE_TYPES,
    REPORTS,
    MessageError,
    UnknownVersionError,
    canonical_json,
    decode_order,
    from_json,
    seal_secrets,
    to_json,
    unseal_secrets,
)
from proxy_worker.contracts.ids import Attempt, TaskId
from proxy_worker.contracts.messages import (
    Failover,
    HeartbeatReport,
    ProgressReport,
    ResultAck,
    ResultReport,
    SealedSecrets,
    TaskOutcome,
    TaskRequest,
    TaskSecrets,
    VsphereAccess,
)
from tests.unit.proxy_worker.contracts.strategies import messages
from transports.base import TransportMode

ACK = ResultAck(task_id=TaskId("t1"), attempt=Attempt(2))
SECRETS = TaskSecrets(
    task_id=TaskId("t1"),
    attempt=Attempt(2),
    repository_key="ab" * 32,
    vsphere=VsphereAccess(host="vc", port=443, thumbprint_sha256="AA", clone_ticket="cst-secret"),
)
ALL = [*MESSAGE_TYPES.values(), TaskSecrets]


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_every_message_comes_back_as_it_was(cls: Any, data: st.DataObject) -> None:
    message = data.draw(messages(cls))
    body = json.loads(canonical_json(to_json(message)))
    assert from_json(cls, body) == message


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
        max_leaves=8,
    )
)
def test_no_json_value_makes_the_decoder_stumble(value: Any) -> None:
    for cls in ALL:
        with pytest.raises(MessageError):
            from_json(cls, value)


@pytest.mark.parametrize("version", [2, 0, None, "1", True, 1.0])
def test_unknown_versions_are_refused(version: Any) -> None:
    with pytest.raises(UnknownVersionError, match="update the older side"):
        from_json(ResultAck, {**to_json(ACK), "schema_version": version})


def test_unknown_fields_are_refused_in_orders_and_ignored_in_reports() -> None:
    with pytest.raises(MessageError, match="unknown field 'more'"):
        from_json(ResultAck, {**to_json(ACK), "more": 1})
    beat = {
        "schema_version": 1,
        "proxy_id": "p",
        "boot_id": "b",
        "sequence": 1,
        "version": "0.1.0",
        "clock_s": 1,
        "slots": 2,
        "running": [{"task_id": "t", "attempt": 1, "newer": "nested"}],
        "stopping": False,
        "modes": ["nbdssl"],
        "cpu_share": 0.5,
        "free_memory_bytes": 1,
        "more": {"any": "thing"},
    }
    decoded = from_json(HeartbeatReport, beat)
    assert decoded.running[0].task_id == "t"
    assert decoded.clock_s == 1.0
    assert HeartbeatReport in REPORTS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attempt", "2"),
        ("attempt", True),
        ("attempt", 2.0),
        ("attempt", None),
        ("task_id", 5),
        ("task_id", ["t"]),
    ],
)
def test_wrong_types_are_refused(field: str, value: Any) -> None:
    with pytest.raises(MessageError, match=f"ResultAck.{field}"):
        from_json(ResultAck, {**to_json(ACK), field: value})


def test_missing_fields_unknown_enums_and_endless_numbers_are_refused() -> None:
    progress = to_json(
        ProgressReport(
            task_id=TaskId("t"),
            attempt=Attempt(1),
            phase="reading",
            total_bytes=1,
            done_bytes=1,
            read_bytes=1,
            stored_bytes=1,
            bytes_per_s=1.5,
            bottleneck="source",
        )
    )
    with pytest.raises(MessageError, match="'phase' is missing"):
        from_json(ProgressReport, {k: v for k, v in progress.items() if k != "phase"})
    for endless in (float("inf"), float("nan"), 10**400):
        with pytest.raises(MessageError, match="finite"):
            from_json(ProgressReport, {**progress, "bytes_per_s": endless})
    with pytest.raises(MessageError, match="is no TaskKind"):
        decode_order("make-coffee", {})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"x": float("nan")})


def test_reports_hold_nothing_that_a_database_refuses() -> None:
    result = ResultReport(
        task_id=TaskId("t"),
        attempt=Attempt(1),
        outcome=TaskOutcome.RETRY,
        reason="descriptor begins with \0\0KDM",
        failovers=(Failover(mode=TransportMode.DIRECT_SAN, reason="magic \0"),),
    )
    read = from_json(ResultReport, to_json(result))
    assert read.reason == "descriptor begins with \ufffd\ufffdKDM"
    assert read.failovers[0].reason == "magic \ufffd"
    for number in (2**63, -(2**63) - 1, 10**300):
        with pytest.raises(MessageError, match="attempt"):
            from_json(ResultReport, {**to_json(result), "attempt": number})


def test_canonical_form() -> None:
    assert canonical_json({"b": 1, "a": [True, None, "ü"]}) == '{"a":[true,null,"ü"],"b":1}'.encode()


def test_secrets_open_with_their_key_alone() -> None:
    key, other = PrivateKey.generate(), PrivateKey.generate()
    sealed = seal_secrets(SECRETS, bytes(key.public_key).hex())
    assert unseal_secrets(sealed, key) == SECRETS
    assert "cst-secret" not in repr(SECRETS) + repr(sealed) + json.dumps(to_json(sealed))
    with pytest.raises(MessageError, match="does not open with this proxy's key") as caught:
        unseal_secrets(sealed, other)
    assert caught.value.__cause__ is None
    with pytest.raises(MessageError, match="about another task"):
        unseal_secrets(replace(sealed, task_id=TaskId("t2")), key)
    with pytest.raises(MessageError, match="does not open"):
        unseal_secrets(replace(sealed, sealed="!!"), key)


@given(st.integers(min_value=0, max_value=10_000))
def test_a_changed_box_does_not_open(position: int) -> None:
    key = PrivateKey(bytes(range(32)))
    sealed = seal_secrets(SECRETS, bytes(key.public_key).hex())
    at = position % len(sealed.sealed)
    letter = "A" if sealed.sealed[at] != "A" else "B"
    changed = sealed.sealed[:at] + letter + sealed.sealed[at + 1 :]
    with pytest.raises(MessageError):
        unseal_secrets(
            SealedSecrets(task_id=sealed.task_id, attempt=sealed.attempt, sealed=changed), key
        )


@pytest.mark.parametrize("name", ["task-request-backup", "task-request-restore-vm"])
def test_proxies_of_the_first_release_know_every_field_of_their_work(name: str) -> None:
    """They refuse what they do not know. The files are as that release wrote them."""
    path = Path(__file__).parents[3] / "format" / "messages" / "1" / f"{name}.json"
    body = json.loads(path.read_text())["body"]
    sent = to_json(from_json(TaskRequest, body))
    assert sent.keys() == body.keys()
    assert sent["repository"].keys() == body["repository"].keys()
    assert to_json(SECRETS).keys() == {
        "task_id",
        "attempt",
        "repository_key",
        "vsphere",
        "schema_version",
    }
