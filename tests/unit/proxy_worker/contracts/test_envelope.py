from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from proxy_worker.contracts.base64url import decode_base64url, encode_base64url
from proxy_worker.contracts.codec import MessageError, UnknownVersionError, canonical_json, to_json
from proxy_worker.contracts.envelope import (
    MAX_AGE_S,
    SERVER,
    ForgedMessageError,
    NonceCache,
    Opener,
    ReplayedMessageError,
    Sealer,
    StaleMessageError,
    UnknownSenderError,
    WrongAddresseeError,
)
from proxy_worker.contracts.ids import Attempt, TaskId
from proxy_worker.contracts.messages import LeaseAnswer, ResultAck, ResultReport, TaskOutcome

KEY = SigningKey(bytes(range(32)))
ACK = ResultAck(task_id=TaskId("t1"), attempt=Attempt(2))
RESULT = ResultReport(task_id=TaskId("t1"), attempt=Attempt(2), outcome=TaskOutcome.SUCCESS, reason="")


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def pair() -> tuple[Sealer, Opener, Clock]:
    clock = Clock()
    keys = {SERVER: KEY.verify_key}
    return Sealer(SERVER, KEY, clock), Opener("px1", keys.get, clock), clock


def signed(outer: Any, key: SigningKey = KEY) -> str:
    data = outer if isinstance(outer, bytes) else canonical_json(outer)
    return f"{encode_base64url(data)}.{encode_base64url(key.sign(data).signature)}"


def outer(**changes: Any) -> dict[str, Any]:
    return {
        "v": 1,
        "from": SERVER,
        "to": "px1",
        "at": 1_800_000_000.0,
        "nonce": "aa",
        "type": "ResultAck",
        "body": to_json(ACK),
        **changes,
    }


def test_what_was_sealed_opens_once() -> None:
    sealer, opener, _ = pair()
    text = sealer.seal(ACK, to="px1")
    envelope = opener.open(text, expect={ResultAck})
    assert (envelope.sender, envelope.addressee, envelope.message) == (SERVER, "px1", ACK)
    with pytest.raises(ReplayedMessageError):
        opener.open(text, expect={ResultAck})


def test_results_may_come_again_and_late() -> None:
    sealer, opener, clock = pair()
    text = sealer.seal(RESULT, to="px1")
    clock.now += 86_400
    for _ in range(2):
        assert opener.open(text, expect={ResultReport}).message == RESULT


@pytest.mark.parametrize("shift", [MAX_AGE_S + 1, -MAX_AGE_S - 1])
def test_old_and_early_messages_are_refused(shift: float) -> None:
    sealer, opener, clock = pair()
    text = sealer.seal(ACK, to="px1")
    clock.now += shift
    with pytest.raises(StaleMessageError, match="compare the clocks") as caught:
        opener.open(text, expect={ResultAck})
    assert caught.value.age_s == shift


def test_strangers_forgers_and_letters_for_others() -> None:
    sealer, opener, clock = pair()
    with pytest.raises(UnknownSenderError):
        opener.open(Sealer("px2", KEY, clock).seal(ACK, to="px1"), expect={ResultAck})
    forger = Sealer(SERVER, SigningKey.generate(), clock)
    with pytest.raises(ForgedMessageError):
        opener.open(forger.seal(ACK, to="px1"), expect={ResultAck})
    with pytest.raises(WrongAddresseeError):
        opener.open(sealer.seal(ACK, to="px2"), expect={ResultAck})
    with pytest.raises(MessageError, match="has no place here"):
        opener.open(sealer.seal(ACK, to="px1"), expect={LeaseAnswer})


@given(st.data())
def test_any_changed_character_is_noticed(data: st.DataObject) -> None:
    _, opener, _ = pair()
    text = signed(outer())  # the same in every example: what is drawn depends on it
    at = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from("AZaz09-_.").filter(lambda sign: sign != text[at]))
    with pytest.raises(MessageError):
        opener.open(text[:at] + letter + text[at + 1 :], expect={ResultAck})


@given(st.binary(max_size=200))
def test_no_bytes_make_the_opener_stumble(data: bytes) -> None:
    _, opener, _ = pair()
    for text in (data, signed(data)):
        with pytest.raises(MessageError):
            opener.open(text, expect={ResultAck})


@pytest.mark.parametrize(
    "wrong",
    [
        [1, 2],
        {"v": 1},
        outer(extra=1),
        outer(at="now"),
        outer(at=True),
        outer(nonce=5),
        outer(body=[]),
    ],
)
def test_other_shapes_are_refused_even_when_signed(wrong: Any) -> None:
    _, opener, _ = pair()
    with pytest.raises(MessageError, match="another shape"):
        opener.open(signed(wrong), expect={ResultAck})


@pytest.mark.parametrize("at", [10**400, -(10**400), 1e300])
def test_a_time_that_no_clock_shows_is_refused(at: float) -> None:
    _, opener, _ = pair()
    with pytest.raises(MessageError, match="another shape"):
        opener.open(signed(outer(at=at)), expect={ResultAck})


def test_versions_types_and_forms() -> None:
    _, opener, _ = pair()
    with pytest.raises(UnknownVersionError):
        opener.open(signed(outer(v=2)), expect={ResultAck})
    with pytest.raises(MessageError, match="has no place here"):
        opener.open(signed(outer(type="Nothing")), expect={ResultAck})
    with pytest.raises(MessageError, match="canonical"):
        opener.open(signed(json.dumps(outer()).encode()), expect={ResultAck})
    with pytest.raises(MessageError, match="longer than any"):
        opener.open("a" * (1 << 20 | 1), expect={ResultAck})
    assert opener.open(signed(outer()), expect={ResultAck}).message == ACK


def test_nonces_are_forgotten_when_age_refuses_them_anyway() -> None:
    cache = NonceCache(keep_s=10, max_entries=3)
    assert cache.first_time("a", 0)
    assert not cache.first_time("a", 9)
    assert cache.first_time("a", 11)
    for number in range(5):
        assert cache.first_time(f"n{number}", 12)


@given(st.binary(max_size=40))
def test_base64url_has_one_form(data: bytes) -> None:
    text = encode_base64url(data)
    assert decode_base64url(text) == data
    for other in (text + "=", text + "\n", text + "A" * 4 + "="):
        with pytest.raises(ValueError, match=r".+"):
            decode_base64url(other)
