"""Commands about jobs on a cluster: submit, jobs, logs, stop."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from segray.cli.app import cli
from segray.cli.flags import settings
from segray.core.formatting import counted

if TYPE_CHECKING:
    from segray.config import Config


CLUSTER = click.option(
    "--address", help="Dashboard of the cluster's head, such as http://10.0.0.1:8265. Default: RAY_ADDRESS."
)


@cli.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", metavar="train|sweep|label|evaluate|jobs.NAME")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@CLUSTER
@click.option("--no-wait", is_flag=True, help="Send the job and exit.")
@click.option("--python", help="Python on the cluster. Default: the path of this one, or with --pip the cluster's own.")
@click.option(
    "--pip",
    multiple=True,
    metavar="REQUIREMENT",
    help="Package to install for the job; a wheel file is sent along. Repeat the flag for more.",
)
def submit(
    command: str, args: tuple[str, ...], address: str | None, no_wait: bool, python: str | None, pip: tuple[str, ...]
) -> None:
    """Run a command as a job on a cluster.

    Its output is followed, and its exit code is the one that submit ends with.

    Its flags are the command's own. Ctrl-C leaves the job running. What it reads and writes is in a bucket, or in
    folders that the cluster's nodes mount.

    \b
    Example:
      segray submit --address http://10.0.0.1:8265 label --model s3://models/best --input s3://drives/ --out s3://labels/1
      segray submit --no-wait sweep --format camvid --data /shared/camvid --lr 1e-3 --workers 4 --out /shared/sweep
      segray submit --pip dist/segray-0.1.0-py3-none-any.whl train --config camvid.yaml --out /shared/run
      segray submit jobs.camvid_best --data /shared/camvid --out /shared/best
    """
    import shlex

    from segray.cli.terminal import say, size
    from segray.cluster import submit as jobs

    config, flags, dry_run = submitted(command, list(args))
    if dry_run:
        click.echo(config.to_yaml(), nl=False)
        return
    client = jobs.connect(address)
    sent = jobs.submit(client, command, config, flags, python=python, pip=pip, shown=shlex.join([command, *args]))
    say(f"Sent {counted(sent.files, 'file')}, {size(sent.size)}. The job is {sent.job}.")
    if no_wait:
        say(f"Follow it: segray logs {sent.job} -f")
        return
    follow(client, sent.job)


def submitted(command: str, args: list[str]) -> tuple[Config, list[str], bool]:
    """Resolve the command line of a job: its settings, the flags that remain, and whether it is a dry run."""
    from segray.cluster import submit as jobs
    from segray.errors import ConfigError, nearest

    if command.startswith("jobs."):
        return *jobs.job_settings(command, args), "--dry-run" in args
    if command not in jobs.COMMANDS:
        raise ConfigError(f"{command} cannot be sent as a job.{nearest(command, (*jobs.COMMANDS, 'jobs.NAME'))}")
    given = dict(cli.commands[command].make_context(command, args).params)
    dry_run = given.pop("dry_run")
    flags = [f"--{name}" for name in ("overwrite", "estimate") if given.pop(name, False)]
    config = jobs.for_cluster(settings(given.pop("file"), given.pop("sets"), **given))
    if command == "label":
        config.label.check_given()
    return config, flags, dry_run


def follow(client: Any, job: str) -> None:
    """Show a job's output until it ends, and end with its exit code. Ctrl-C leaves the job running."""
    from segray.cli.terminal import say
    from segray.cluster import submit as jobs

    try:
        code = jobs.follow(
            client, job, lambda text: click.echo(text, nl=False), lambda text: click.echo(text, err=True)
        )
    except KeyboardInterrupt as stop:
        say(f"The job keeps running. Follow it: segray logs {job} -f. Stop it: segray stop {job}")
        sys.exit(getattr(stop, "exit_code", 130))
    no_python = " Its interpreter is not on the cluster: see --python and --pip." if code == 127 else ""
    say(f"The job {job} ended with exit code {code}.{no_python}")
    sys.exit(code)


@cli.command()
@CLUSTER
def jobs(address: str | None) -> None:
    """List the jobs of a cluster, newest first.

    \b
    Example:
      segray jobs --address http://10.0.0.1:8265
    """
    from segray.cli.terminal import moment, say, table
    from segray.cluster import submit
    from segray.core.formatting import duration

    rows = []
    for info in submit.jobs(submit.connect(address)):
        started, ended = info.start_time or 0, info.end_time or time.time() * 1000
        command = (info.metadata or {}).get("command") or info.entrypoint
        took = duration((ended - started) / 1000) if started else None
        rows.append((info.submission_id, info.status.value, moment(started / 1000), took, command))
    if not rows:
        say("No job was sent to this cluster yet.")
        return
    table(counted(len(rows), "job"), ("job", "status", "started", "took", "command"), rows)


@cli.command()
@click.argument("job")
@CLUSTER
@click.option("-f", "--follow", "go_on", is_flag=True, help="Follow the job to its end, and end with its exit code.")
def logs(job: str, address: str | None, go_on: bool) -> None:
    """Print the output of a job.

    \b
    Example:
      segray logs segray-label-1a2b3c4d -f
    """
    from segray.cluster import submit

    client = submit.connect(address)
    if go_on:
        follow(client, job)
    click.echo(submit.logs(client, job), nl=False)


@cli.command()
@click.argument("job")
@CLUSTER
def stop(job: str, address: str | None) -> None:
    """Stop a job. What it has finished is kept, and the same command resumes.

    \b
    Example:
      segray stop segray-label-1a2b3c4d
    """
    from segray.cli.terminal import say
    from segray.cluster import submit

    running = submit.stop(submit.connect(address), job)
    say(f"{job} is stopped." if running else f"{job} had ended before.")
