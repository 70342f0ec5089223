"""The command line: its group, and what a command's errors become: one line and an exit code."""

from __future__ import annotations

import signal
import sys
from typing import Any

import click

from segray import __version__
from segray.errors import SegrayError, Terminated


class Example(click.Command):
    """A command whose help keeps its line breaks, so that examples can be copied."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"context_settings": {"max_content_width": 110}, **kwargs})


class Examples(click.Group):
    """A group of such commands: their help keeps its line breaks."""

    command_class = Example


@click.group(cls=Examples, context_settings={"max_content_width": 110})
@click.version_option(__version__, prog_name="segray")
def cli() -> None:
    """Train, compare and run semantic segmentation of road frames, on a laptop or a Ray cluster.

    \b
    segray demo                                           the whole pipeline on drawn streets, in minutes
    segray sweep --format camvid --data DIR --out runs/s  which encoder is best on your frames
    segray label --model runs/s/best --input DRIVES       masks and metrics for unlabelled frames
    """


def main(command: click.Command = cli) -> None:
    """Run a command and end the process.

    Exit codes: 0 done, 1 failed, 2 usage or settings, 3 more errors than the limit, 130 Ctrl-C, 143 SIGTERM. An error
    of ours is one line on stderr.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        command.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except SegrayError as error:
        click.echo(f"segray: {error}", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as stop:
        click.echo(f"segray: stopped.{' The same command resumes here.' * (command is cli)}", err=True)
        sys.exit(Terminated.exit_code if isinstance(stop.__cause__ or stop, Terminated) else 130)
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second SIGTERM must not interrupt the cleanup; SIGKILL can
    raise Terminated
