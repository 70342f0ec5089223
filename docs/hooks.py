"""What the site adds to the pages: the commands, from their own help, and docstrings as Markdown."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import click
from griffe import Extension, Object

from segray.cli import cli

HERE = "<!-- Every command is written here when the site is built. -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Write the commands where a page has their mark."""
    return markdown.replace(HERE, "\n\n".join(_commands(cli, click.Context(cli, info_name="segray"))))


def _commands(group: click.Group, parent: click.Context) -> Iterator[str]:
    """Give a section for each command, in the order of the names, and those of a group behind it."""
    for name, command in sorted(group.commands.items()):
        context = click.Context(command, info_name=name, parent=parent)
        yield from _section(command, context)
        if isinstance(command, click.Group):
            yield from _commands(command, context)


def _section(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"## {context.command_path} {{ #{context.command_path.removeprefix('segray ').replace(' ', '-')} }}"
    text, *kept = re.split(r"^\x08\n", inspect.cleandoc(command.help or ""), flags=re.MULTILINE)
    yield _escaped(text.strip())
    yield f"```text\n{' '.join([context.command_path, *command.collect_usage_pieces(context)])}\n```"
    for block in kept:
        yield f"```text\n{inspect.cleandoc(block.removeprefix('Example:'))}\n```"
    options = [one for one in command.params if isinstance(one, click.Option)]
    records = [record for option in options if (record := option.get_help_record(context))]
    rows = [f"| `{flag}` | {_escaped(meaning)} |" for flag, meaning in records]
    yield "\n".join(["| flag | meaning |", "| --- | --- |", *rows] if rows else [])


def _escaped(text: str) -> str:
    """Keep help from being read as HTML, as columns or as emphasis."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;").replace("*", "&#42;")


class Readable(Extension):
    """Docstrings as Markdown: `name: meaning` becomes a list, and an example a block of code."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = "\n".join(_markdown(obj.docstring.value.splitlines()))


def _markdown(lines: list[str]) -> Iterator[str]:
    listing = example = False
    for line in [*lines, ""]:
        if line.startswith(">>>") and not example:
            example = True
            yield "\n```pycon"
        elif example and not line:
            example = False
            yield "```\n"
        named = None if example else re.match(r"([a-z_]+(?:, [a-z_]+)*): ", line)
        if not example and not line.startswith(" ") and listing != bool(named):
            listing = bool(named)
            yield ""
        if line.startswith(("Raises ", "Returns ")):
            yield ""
        yield f"- **{named[1]}**: {line[named.end() :]}" if named else line
