"""The reference of the command line, made from the commands themselves.

`python -m backup_server.cli.reference > docs/reference/cli.md`; a test says when the page is old.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Final

import typer

from backup_server.cli.app import build
from backup_server.cli.door import PANEL
from backup_server.cli.exits import MEANINGS

HEAD: Final = """# Command line

Made from the commands by `python -m backup_server.cli.reference`; do not edit.

`vmhaul NOUN VERB ...`. Every command that talks to the server also takes:

| option | variable | what |
|---|---|---|
{shared}
These may stand before the noun, too. Tables are for people; `--json` prints the shapes of
[the API](api.md), lists as `{{"items": [...], "next": null}}`. Errors go to standard error.
`vmhaul --install-completion` installs completion for the shell.

## Exit codes

| code | meaning |
|---|---|
{codes}"""


def markdown() -> str:
    """The whole page."""
    root: Any = typer.main.get_command(build())
    shared = "".join(
        f"| `{_names(option)}` | {_variable(option)} | {_cell(option.help)} |\n"
        for option in root.params
        if option.rich_help_panel == PANEL
    )
    codes = "".join(f"| {code.value} | {_cell(meaning)} |\n" for code, meaning in MEANINGS.items())
    parts = [HEAD.format(shared=shared, codes=codes)]
    for name, command in root.commands.items():
        if hasattr(command, "commands"):
            parts.append(f"\n## vmhaul {name}\n\n{_first_line(command.help)}\n")
            parts += [_command(path, sub, "###") for path, sub in _commands(name, command)]
        else:
            parts.append(_command(name, command, "##"))
    return "".join(parts)


def _commands(path: str, group: Any) -> Iterator[tuple[str, Any]]:
    """Every command below a noun, also those of nouns of its own."""
    for verb, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(f"{path} {verb}", command)
        else:
            yield f"{path} {verb}", command


def _command(name: str, command: Any, heading: str) -> str:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    words = " ".join([f"vmhaul {name}", *(_metavar(argument) for argument in arguments)])
    rows = "".join(_rows(command))
    text = f"\n{heading} {words}\n\n{_paragraphs(command.help)}\n"
    return f"{text}\n| option | what |\n|---|---|\n{rows}" if rows else text


def _rows(command: Any) -> Iterator[str]:
    # A command that takes only some of the shared options has them in its own table.
    shared = {"--data", "--json"} <= {name for param in command.params for name in param.opts}
    for param in command.params:
        if param.param_type_name == "argument":
            if param.help:
                yield f"| `{_metavar(param)}` | {_cell(param.help)} |\n"
        elif not (shared and param.rich_help_panel == PANEL) and param.name != "help":
            needed = " (required)" if param.required else ""
            yield f"| `{_cell(_names(param))}` | {_cell(param.help)}{needed} |\n"


def _names(option: Any) -> str:
    names = " / ".join([*option.opts, *option.secondary_opts])
    return names if option.is_flag else f"{names} {_metavar(option)}"


def _metavar(param: Any) -> str:
    if param.metavar:
        return str(param.metavar)
    return str(param.opts[0]).lstrip("-").replace("-", "_").upper()


def _variable(option: Any) -> str:
    return f"`{option.envvar}`" if option.envvar else ""


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def _first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0]


def _paragraphs(text: str | None) -> str:
    lines = [line.strip() for line in (text or "").strip().splitlines()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(markdown())
