"""Labels → every violation of their promise; parts are read as tasks of a cluster, or by all processors here."""

from __future__ import annotations

from typing import NamedTuple

from segray.cluster.tasks import spread
from segray.core.labels import parts
from segray.core.labels.folder import LabelFolder
from segray.core.progress import Progress, untold
from segray.errors import ConfigError
from segray.sections.labelling import ClusterSection

LITTLE_ROWS = 2000  # that one process reads before others would have started


class Verified(NamedTuple):
    """What was found: a line each violation; rows and parts that are planned, and parts whose rows were read."""

    problems: list[str]
    rows: int
    parts: int
    read: int


def verify(
    out: str, sample: float = 1.0, cluster: ClusterSection | None = None, progress: Progress = untold
) -> Verified:
    """Check labels as core.labels.parts.verify() does. Raises DataError where there are none."""
    if not 0 < sample <= 1:
        raise ConfigError(f"--sample is {sample:g}; give a share of the parts, above 0 and up to 1.")
    folder, read = LabelFolder.open(out), 0

    def count(more: int, total: int | None) -> None:
        nonlocal read
        read += more
        progress(more, total)

    is_little = sample * sum(plan.rows for plan in folder.plans) < LITTLE_ROWS
    with spread(cluster or ClusterSection(), [folder.plans[-1].json_uri], is_little=is_little) as run:
        problems = parts.verify(folder.plans, count, sample=sample, spread=run)
    return Verified(problems, sum(plan.rows for plan in folder.plans), folder.shards, read)
