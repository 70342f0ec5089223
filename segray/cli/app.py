"""The command line: its group, and what a command's errors become: one line and an exit code."""

from __future__ import annotations

import difflib
import logging
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from segray import __version__
from segray.cluster.signals import said, say_stopping
from segray.core.memory import is_exhausted
from segray.errors import SegrayError, Terminated, in_a_line

COMMANDLINE = click.core.ParameterSource.COMMANDLINE
EXHAUSTED = "The machine's memory is exhausted. Lower the stage's batch_size, or end what else uses the memory."


class _Hints(click.Command):
    """A command that says what it calls an option that it does not know, and names the flags that it was given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if hint := self._hint(error.option_name.lstrip("-")):
                raise click.UsageError(f"No such option '{error.option_name}'. {hint}", ctx) from None
            raise
        except click.UsageError as error:
            options = {param.name: param.opts[0] for param in self.params}
            flag = options.get("label__inputs") or options.get("data__root")
            if flag and error.message.startswith("Got unexpected extra argument"):
                raise click.UsageError(f"{error.message}. Did you mean {flag} before it?", ctx) from None
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SegrayError as error:
            error.args = (self._with_flags(str(error), ctx),)
            raise
        except KeyboardInterrupt as stop:
            raise click.Abort from stop  # of any other exception click makes this one after an empty line

    def _with_flags(self, text: str, ctx: click.Context) -> str:
        """Name the settings of an error by those flags by which they were given."""
        from segray.cli.flags import FLAGS, Setting

        settings = [param for param in self.params if isinstance(param, Setting)]
        given = [one for one in settings if ctx.get_parameter_source(str(one.name)) is COMMANDLINE]
        for one in given:
            flag = one.opts[0]
            for key in {one.setting, FLAGS.get(flag, (one.setting,))[0]}:  # a sweep's --lr is its trials', too
                text = re.sub(rf"(?:^settings: )?(?<![\w./-]){re.escape(key)}(?:\.\d+)?(?![\w=/]|\.\w)", flag, text)
        return text

    def _hint(self, word: str) -> str:
        """Return the flag of the setting that has this name here or in other tools, or how --set gives it, or ''."""
        from segray.config import fields_of, keys_like

        named = {getattr(param, "setting", str(param.name).replace("__", ".")): param for param in self.params}
        flags = [param.opts[0] for param in self.params]
        if word == "resume":
            return "The same command again resumes."
        if any(difflib.get_close_matches(f"--{word}", flags, 1, cutoff=0.85)) or "sets" not in named:
            return ""  # click names those
        sections = getattr(self.callback, "sections", ())
        known = [key for key in keys_like(word) if key in named or key.partition(".")[0] in sections]
        if not known:
            return ""
        key = min(known, key=lambda key: key not in named)
        if key not in named:
            return f"Use --set {key}=VALUE: {fields_of()[key].description}"
        param = named[key]
        is_flag = isinstance(param, click.Option)
        return f"Did you mean {param.opts[0]}?" if is_flag else f"Give it without a flag, as {param.metavar}."


class Example(_Hints):
    """A command whose help keeps its line breaks, so that examples can be copied."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"context_settings": {"max_content_width": 110}, **kwargs})


class Examples(_Hints, click.Group):
    """A group of such commands: their help keeps its line breaks."""

    command_class = Example


STAGES = {  # of `segray --help`: the commands in the order in which people need them
    "Start": ("demo", "data", "models", "import", "recipes"),
    "Train": ("train", "sweep", "evaluate", "compare"),
    "Label": ("label", "verify", "select", "show", "overlay", "export"),
    "Look": ("report", "status"),
    "Cluster": ("submit", "jobs", "logs", "stop"),
}


ELSEWHERE = {"predict": "label", "infer": "label", "test": "evaluate", "val": "evaluate", "eval": "evaluate"}
ELSEWHERE |= {"fit": "train", "tune": "sweep"}  # what other tools call commands


class _ByStage(Examples):
    """The group of all commands."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] in ELSEWHERE:
            ctx.fail(f"No such command '{args[0]}'. Did you mean '{ELSEWHERE[args[0]]}'?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.commands))
        for stage, names in STAGES.items():
            with formatter.section(stage):
                formatter.write_dl([(name.ljust(width), self.commands[name].get_short_help_str(100)) for name in names])


@click.group(cls=_ByStage, context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="segray")
def cli() -> None:
    """Train, compare and run semantic segmentation of road frames, on a laptop or a Ray cluster.

    \b
    segray demo                                    all of it, on drawn streets
    segray train --data mine/ --format folder      a model of your own frames
    segray sweep --data mine/ --out runs/s         which encoder is best for them
    segray label --model runs/s/best --input new/  masks and metrics of new frames
    """


@contextmanager
def resuming(began: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Have main() say of work that is stopped what the same command does. began: whether there is some to resume."""
    try:
        yield
    except KeyboardInterrupt as stop:
        with suppress(SegrayError):  # the store does not answer
            stop.add_note(
                f"The same command {'resumes here' if began() else 'begins anew: there is nothing to resume'}."
            )
        raise


def as_typed(text: str) -> str:
    """Return a message in which paths below the working directory are relative, unless one was typed as absolute.

    Settings hold absolute ones, which mean the same in every process.
    """
    try:
        here = f"{Path.cwd()}/"
    except FileNotFoundError:  # it was deleted
        return text
    if here == "//" or any(here in word for word in sys.argv):
        return text
    return re.sub(rf"(?<![^\s'\"`(=]){re.escape(here)}(?=\S)", "", text)


def _note_as_typed(record: logging.LogRecord) -> bool:
    record.msg, record.args = as_typed(record.getMessage()), ()
    return True


def main(command: click.Command = cli) -> None:
    """Run a command and end the process.

    Exit codes: 0 done, 1 failed, 2 usage or settings, 3 more errors than the limit, 130 Ctrl-C, 143 SIGTERM. An error
    of ours is one line on stderr.
    """
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, _terminate)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell ignores Ctrl-C for background jobs
        before[signal.SIGINT] = signal.signal(signal.SIGINT, _interrupt)
    said.clear()
    log = logging.getLogger("segray")
    log.addFilter(_note_as_typed)
    try:
        command.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except SegrayError as error:
        click.echo(as_typed(f"segray: {error}"), err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as stop:
        cause = stop.__cause__ or stop
        click.echo(" ".join(["segray: stopped.", *getattr(cause, "__notes__", ())]), err=True)
        sys.exit(Terminated.exit_code if isinstance(cause, Terminated) else 130)
    except Exception as error:
        if not is_exhausted(error):
            raise
        click.echo(f"segray: {EXHAUSTED} ({in_a_line(error)})", err=True)
        sys.exit(1)
    finally:
        log.removeFilter(_note_as_typed)
        for one, handler in before.items():
            signal.signal(one, handler)


def _interrupt(*_: Any) -> None:
    say_stopping()
    raise KeyboardInterrupt


def _terminate(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second SIGTERM must not interrupt the cleanup; SIGKILL can
    say_stopping()
    raise Terminated
