"""Commands for an overview: demo, report, status."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from segray.cli.app import cli
from segray.cli.flags import stage

if TYPE_CHECKING:
    from segray.config import Config


@cli.command()
@click.option("--out", default="runs/demo", show_default=True, help="Folder for all results.")
@click.option("--small", is_flag=True, help="End in about a minute, with one model that has learnt little.")
@click.option("--overwrite", is_flag=True, help="Delete the results of an earlier demo in --out first.")
def demo(out: str, small: bool, overwrite: bool) -> None:
    """Run the whole pipeline on drawn streets, in about five minutes on two cores.

    It draws streets, trains two models, labels frames and a video, and writes a report.

    \b
    Example:
      segray demo --out runs/demo
      segray demo --small
    """
    from segray.cli.demo import demo

    demo(out, small=small, overwrite=overwrite)


@cli.command()
@click.argument("report__runs", nargs=-1, metavar="[FOLDER]...")
@stage("--labels", out="report.out", sections=("report",))
def report(config: Config, overwrite: bool) -> None:
    """Write one HTML page about runs, evaluations and labels.

    It takes the folders that train, sweep, evaluate, compare and label wrote.

    \b
    Example:
      segray report runs/sweep runs/sweep-val labels/val --out report.html
    """
    from segray.cli.terminal import say, waiting
    from segray.stages.report import report

    with waiting("Writing the report"):
        page = report([*config.report.runs, *config.report.labels], config.report.out, overwrite=overwrite)
    say(f"The report is {page}.")


@cli.command()
@click.argument("out")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def status(out: str, as_json: bool) -> None:
    """Show the progress of a run from its folder.

    The run is one of train, sweep or label, and may be running elsewhere.

    \b
    Example:
      segray status s3://labels/2026
      segray status runs/sweep --json
    """
    import json
    from dataclasses import asdict

    from segray.cli.terminal import show_status
    from segray.stages.status import status

    found = status(out)
    if as_json:
        click.echo(json.dumps(asdict(found)))
    else:
        show_status(out, found)
