"""The repository agent's calls about the extents of a scale-out repository. They need no key: extents are
moved and mirrored as they are, and `location` says all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.errors import PermanentPipelineError, PipelineError
from pipeline.storage import Storage, open_storage
from pipeline.storage.extents import (
    ExtentConfig,
    ExtentState,
    activate,
    add_extent,
    evacuate,
    format_location,
    is_scale_out,
    packs_nowhere_else,
    parse_location,
    retire,
)
from pipeline.storage.scale_out import PACKS, ScaleOutStorage
from proxy_worker.turns import turn

Args = dict[str, Any]


class ExtentCalls:
    """Each opens what it needs and closes it again."""

    def __init__(self, secrets_of: Callable[[Args], dict[str, str]]) -> None:
        self._secrets_of = secrets_of

    def calls(self) -> dict[str, Callable[[Args], Args]]:
        return {
            "extent_list": self._list,
            "extent_add": self._add,
            "extent_level": self._level,
            "extent_activate": self._activate,
            "extent_evacuate": self._evacuate,
            "extent_remove": self._remove,
            "extent_retire": self._retire,
        }

    def _opener(self, args: Args, *, create: bool = False) -> Callable[[str], Storage]:
        secrets = self._secrets_of(args)
        return lambda place: open_storage(place, secrets=secrets, create=create)

    def _opened(self, args: Args) -> ScaleOutStorage:
        storage = self._opener(args)(args["location"])
        if not isinstance(storage, ScaleOutStorage):
            raise PermanentPipelineError(f"{args['location']} has no extents")
        return storage

    def _list(self, args: Args) -> Args:
        """Space and packs of each extent that can be opened, and why another one cannot."""
        open_one = self._opener(args)
        return {"extents": [_facts(config, open_one) for config in _configs(args)]}

    def _add(self, args: Args) -> Args:
        open_one = self._opener(args)
        before = open_one(args["location"])
        with turn(before.location, alone=True):
            after = add_extent(
                args["location"],
                ExtentConfig(name=args["extent"], location=args["place"]),
                open_one,
                self._opener(args, create=True),
                first_name=args["first_name"],
            )
        return {"extents": _rows(after)}

    def _level(self, args: Args) -> Args:
        """Whatever one extent alone has of the small objects is given to all that are active."""
        storage = self._opened(args)
        with turn(storage.location, alone=True):
            storage.clean(float("-inf"))
        return {}

    def _activate(self, args: Args) -> Args:
        others = [config for config in _configs(args) if config.name != args["extent"]]
        if all(config.state is ExtentState.MAINTENANCE for config in others):
            return {"extents": _rows(activate(args["location"], args["extent"], self._opener(args)))}
        online = self._opener(args)(format_location(others))
        with turn(online.location, alone=True):
            return {"extents": _rows(activate(args["location"], args["extent"], self._opener(args)))}

    def _evacuate(self, args: Args) -> Args:
        storage = self._opened(args)
        # Beside commits, not beside a prune: that one would delete what is on its way.
        with turn(storage.location, alone=False):
            done = evacuate(storage, args["extent"])
        return {
            "moved_packs": done.moved_packs,
            "moved_bytes": done.moved_bytes,
            "kept_packs": done.kept_packs,
        }

    def _remove(self, args: Args) -> Args:
        """The extents without that one. Nothing is changed: who asks writes them down, and then has it retired."""
        name, configs = args["extent"], _configs(args)
        left = [config for config in configs if config.name != name]
        if not any(config.state is ExtentState.ACTIVE for config in left):
            raise PermanentPipelineError(
                f"extent {name!r} is the last that is active; add another first"
            )
        if not args.get("lost"):
            storage = self._opened(args)
            with turn(storage.location, alone=True):
                if count := packs_nowhere_else(storage, name):
                    raise PermanentPipelineError(
                        f"extent {name!r} holds {count} packs that no other extent has; evacuate it first"
                    )
        return {"extents": _rows(format_location(left))}

    def _retire(self, args: Args) -> Args:
        """Take the marks off an extent that was removed; `location` still names it."""
        storage = self._opened(args)
        with turn(storage.location, alone=True):
            retire(storage, args["extent"])
        return {}


def _configs(args: Args) -> tuple[ExtentConfig, ...]:
    location = args["location"]
    if not is_scale_out(location):
        return (ExtentConfig(name=args.get("first_name") or "first", location=location),)
    configs = parse_location(location)
    if args.get("extent") and args["extent"] not in {config.name for config in configs}:
        raise PermanentPipelineError(
            f"there is no extent {args['extent']!r}; there are "
            f"{', '.join(repr(config.name) for config in configs)}"
        )
    return configs


def _facts(config: ExtentConfig, open_one: Callable[[str], Storage]) -> Args:
    facts: Args = {**_row(config), "problem": "", "free_bytes": None, "total_bytes": None}
    facts |= {"packs": None, "pack_bytes": None}
    if config.state is ExtentState.MAINTENANCE:
        return facts
    try:
        storage = open_one(config.location)
        try:
            space = storage.space()
            sizes = [entry.size_bytes for entry in storage.list(PACKS)]
        finally:
            storage.close()
    except PipelineError as error:
        return {**facts, "problem": str(error)}
    facts |= {"free_bytes": space.free_bytes, "total_bytes": space.total_bytes}
    return {**facts, "packs": len(sizes), "pack_bytes": sum(sizes)}


def _rows(location: str) -> list[dict[str, str]]:
    return [_row(config) for config in parse_location(location)]


def _row(config: ExtentConfig) -> dict[str, str]:
    return {"name": config.name, "location": config.location, "state": config.state.value}
