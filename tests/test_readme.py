"""The commands in the README: each parses, and its settings are valid."""

import re
import shlex
from pathlib import Path

import click
import pytest

from segray import cli

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = "\n".join(re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)).replace("\\\n", " ")
COMMANDS = [line.split("  #")[0].strip() for line in BLOCKS.splitlines() if line.strip().startswith("segray ")]


def test_the_readme_shows_every_command():
    shown = {" ".join(command.split()[1:3]) for command in COMMANDS}
    for name in cli.cli.commands:
        assert any(line.split()[0] == name for line in shown), name


@pytest.mark.parametrize("line", COMMANDS)
def test_a_readme_command_parses(line):
    args = shlex.split(line)[1:]
    command = cli.cli.commands[args[0]]
    if any("--dry-run" in param.opts for param in command.params):
        cli.cli.main([*args, "--dry-run"], standalone_mode=False)
    else:
        while isinstance(command, click.Group):
            args = args[1:]
            command = command.commands[args[0]]
        command.make_context(args[0], args[1:])


def test_make_knows_the_targets_that_the_readme_names():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z]+)`?", README)):
        assert f"\n{target}:" in makefile, target
