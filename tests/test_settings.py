"""The settings as people read them: a page that is made from the models, and flags whose help is theirs."""

import re
from pathlib import Path

import click
import pytest

from segray import cli, settings_reference
from segray.cli.flags import FLAGS, RENAMED
from segray.config import fields_of

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"


def test_the_page_of_settings_is_of_this_code():
    made = settings_reference.page()
    assert PAGE.read_text() == made, "run: python -m segray.settings_reference > docs/settings.md"


@pytest.mark.parametrize("key", fields_of())
def test_a_setting_is_described_in_whole_sentences_that_say_its_default(key):
    field = fields_of()[key]
    assert re.fullmatch(r"[A-Z].*\.", field.description)
    assert "|" not in field.description


def row(key):
    (line,) = (line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{key}` |"))
    return [cell.strip() for cell in line.split("|")[2:5]]


def test_types_defaults_and_units_are_plain_words():
    assert row("train.epochs") == ["integer ≥ 1", "10", "epochs"]
    assert row("train.momentum") == ["number ≥ 0 and < 1", "0.9", ""]
    assert row("train.loss") == ["loss, or mapping of losses to weights", "cross_entropy", ""]
    assert row("train.class_weights") == ["list of numbers ≥ 0, or none or median", "none", ""]
    assert row("data.size") == ["height x width", "", "pixels"]
    assert row("model.encoder_weights") == ["name or path", "none", ""]
    assert row("label.inputs") == ["list of paths", "", ""]
    assert row("sweep.time") == ["number > 0", "", "seconds"]
    assert row("augment.mix") == ["none, cutmix or classmix", "none", ""]


def help_of(command):
    """A command's help as one line of words."""
    return " ".join(cli.cli.commands[command].get_help(click.Context(cli.cli.commands[command])).split())


def test_a_flags_help_is_what_its_setting_says():
    told = help_of("train") + help_of("sweep") + help_of("evaluate") + help_of("label") + help_of("report")
    for name, (key, _) in FLAGS.items():
        assert RENAMED.get(name, name) in told
        assert " ".join(fields_of()[key].description.split()) in told
    assert "Passes over the training frames. [default: 10]" in told
    assert "Encoders to try. Default: `model.encoder` alone. Repeat the flag for more." in told


@pytest.mark.parametrize("group", [cli.cli, cli.cli.commands["data"]])
def test_a_list_of_commands_has_a_whole_sentence_for_each_at_80_columns(group):
    told = group.get_help(click.Context(group, terminal_width=80))
    assert "..." not in told.replace("[ARGS]...", "")
