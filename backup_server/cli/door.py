"""What every command shares: how it reaches the server, `--json`, and how errors leave it."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer

from backup_server.cli import output
from backup_server.cli.client import ApiClient, ServerAddress, default_data_dir, find_server
from backup_server.cli.exits import CliError, Exit

T = TypeVar("T")

PANEL: Final = "Server and output"

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        envvar="VMHAUL_DATA",
        help="Data directory of the server on this machine.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        envvar="VMHAUL_SERVER",
        help="URL of a server elsewhere; needs --token-file.",
        rich_help_panel=PANEL,
    ),
]
TokenOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        envvar="VMHAUL_TOKEN_FILE",
        help="File with the API's token, or a copy of run/server.json.",
        rich_help_panel=PANEL,
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print JSON in the API's shapes.", rich_help_panel=PANEL),
]


@dataclass(slots=True, kw_only=True)
class Door:
    """One command's way to the server. The connection opens with the first use of `api`."""

    data: Path | None
    server: str | None
    token_file: Path | None
    json: bool
    _api: ApiClient | None = field(default=None, repr=False)

    @property
    def data_dir(self) -> Path:
        return self.data or default_data_dir()

    @property
    def remote(self) -> bool:
        return self.server is not None

    def address(self) -> ServerAddress:
        return find_server(self.data, self.server, self.token_file)

    @property
    def api(self) -> ApiClient:
        if self._api is None:
            self._api = ApiClient(self.address())
        return self._api

    def hint(self, command: str) -> str:
        """A command line that a person can copy: with the same way to the server as this one."""
        words = ["vmhaul", command]
        # What the environment says already need not be said again.
        given = (
            ("--server", "VMHAUL_SERVER", self.server),
            ("--token-file", "VMHAUL_TOKEN_FILE", self.token_file),
            ("--data", "VMHAUL_DATA", None if self.server else self.data),
        )
        for option, variable, value in given:
            if value and os.environ.get(variable) != str(value):
                words += [option, str(value)]
        return " ".join(words)

    def close(self) -> None:
        if self._api is not None:
            self._api.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class RootOptions:
    """What stood before the noun: `vmhaul --data D job list`."""

    data: Path | None = None
    server: str | None = None
    token_file: Path | None = None
    json: bool = False


def data_option(ctx: typer.Context, own: Path | None) -> Path | None:
    """`--data` as it holds for a command: beside it, before the noun, or in the environment."""
    root = ctx.find_root().obj or RootOptions()
    return _nearest(ctx, "data", own, root.data)


def json_option(ctx: typer.Context, own: bool) -> bool:
    """`--json` as it holds for a command: beside it, or before the noun."""
    return own or bool((ctx.find_root().obj or RootOptions()).json)


def _nearest(ctx: typer.Context, name: str, own: T, at_root: T) -> T:
    """A command's option, or the one before the noun.

    The environment fills both in, and must not hide what was typed before the noun: the command would
    go to another server than the one it was told.
    """
    return own if _typed(ctx.get_parameter_source, name) else at_root or own


def _typed(source_of: Callable[[str], Any], name: str) -> bool:
    source = source_of(name)
    # By name: typer brings a click of its own, whose enum is not public.
    return source is not None and source.name == "COMMANDLINE"


def _server_option(ctx: typer.Context, own: str | None, at_root: str | None) -> str | None:
    """`--server`; what was typed as `--data` beats a VMHAUL_SERVER of the environment."""
    levels = (ctx.get_parameter_source, ctx.find_root().get_parameter_source)
    if any(_typed(level, "data") for level in levels) and not any(
        _typed(level, "server") for level in levels
    ):
        return None
    return _nearest(ctx, "server", own, at_root)


@contextmanager
def errors_on_stderr() -> Iterator[None]:
    """Turn CliError, and Ctrl-C, into a message and an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        output.note("vmhaul: interrupted")
        raise typer.Exit(Exit.INTERRUPTED.value) from None
    except CliError as error:
        output.note(f"vmhaul: {error}")
        raise typer.Exit(error.code.value) from None


_SHARED: Final = (
    ("data", DataOption, None),
    ("server", ServerOption, None),
    ("token_file", TokenOption, None),
    ("as_json", JsonOption, False),
)


def with_door(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the shared options; the function takes the Door as its first argument."""
    signature = inspect.signature(function, eval_str=True)
    own = list(signature.parameters.values())[1:]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, kind, default in _SHARED
    ]
    context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)

    @functools.wraps(function)
    def wrapper(
        *,
        ctx: typer.Context,
        data: Path | None,
        server: str | None,
        token_file: Path | None,
        as_json: bool,
        **values: Any,
    ) -> None:
        root = ctx.find_root().obj or RootOptions()
        door = Door(
            data=data_option(ctx, data),
            server=_server_option(ctx, server, root.server),
            token_file=_nearest(ctx, "token_file", token_file, root.token_file),
            json=json_option(ctx, as_json),
        )
        with errors_on_stderr():
            try:
                function(door, **values)
            finally:
                door.close()

    parameters = [
        *(own_parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for own_parameter in own),
        context,
        *shared,
    ]
    setattr(wrapper, "__signature__", signature.replace(parameters=parameters))  # noqa: B010
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


def noun(help_text: str) -> typer.Typer:
    """A group of commands."""
    return typer.Typer(help=help_text, no_args_is_help=True)
