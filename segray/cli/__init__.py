"""The command line. Each module adds its commands to the group; `segray --help` loads none of what they run."""

from segray.cli import cluster, data, label, report, train  # noqa: F401  # each adds commands
from segray.cli.app import cli, main

__all__ = ["cli", "main"]
