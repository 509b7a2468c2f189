"""Hypothesis: any message that can be written."""

from __future__ import annotations

import dataclasses
import types
import typing
from enum import Enum
from typing import Any

from hypothesis import strategies as st

from proxy_worker.contracts.messages import SCHEMA_VERSION

# No NUL: reports are read without.
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20)
SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    int: st.integers(min_value=-(2**63), max_value=2**63 - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
}


def values(kind: Any) -> st.SearchStrategy[Any]:
    while hasattr(kind, "__supertype__"):
        kind = kind.__supertype__
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        options = typing.get_args(kind)
        return st.one_of(*(st.none() if option is type(None) else values(option) for option in options))
    if origin is tuple:
        return st.lists(values(typing.get_args(kind)[0]), max_size=3).map(tuple)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return st.sampled_from(list(kind))
    if dataclasses.is_dataclass(kind):
        return messages(kind)
    return SCALARS[kind]


def messages(cls: Any) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls)
    fields = {
        item.name: st.just(SCHEMA_VERSION)
        if item.name == "schema_version"
        else values(hints[item.name])
        for item in dataclasses.fields(cls)
    }
    return st.fixed_dictionaries(fields).map(lambda given: cls(**given))
