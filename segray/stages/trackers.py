"""Rows of history → experiment trackers: TensorBoard always, MLflow if it is configured.

They are written by the process that started the run, from the rows of history.jsonl; a resumed run continues there
without repeating an epoch.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segray.config import Config
from segray.core.io import storage
from segray.core.training.checkpoint import EpochRow, History, read_history
from segray.errors import ConfigError, shortened

TENSORBOARD, MLFLOW_RUN = "tensorboard", "mlflow-run.txt"
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}  # or it waits for minutes

log = logging.getLogger("segray")

Track = Callable[[EpochRow], None]


@contextmanager
def tracking(config: Config) -> Iterator[Track]:
    """Yield a function that takes each new row of `train.out`'s history."""
    out = config.train.out
    history = read_history(out)
    board = _TensorBoard(out, history)
    flow = _mlflow(config, out, history) if config.train.mlflow else None

    def track(row: EpochRow) -> None:
        board.add(row)
        if flow is not None:
            flow(row)

    try:
        yield track
    finally:
        board.close()


class _TensorBoard:
    """OUT/tensorboard, rewritten from the history, so that a resumed run has one file and one curve.

    It grows in a folder of this machine; in a bucket it is replaced after each epoch.
    """

    def __init__(self, out: str, history: History) -> None:
        from tensorboardX import SummaryWriter

        self.place = storage.join(out, TENSORBOARD)
        storage.remove(self.place)
        self.folder = tempfile.TemporaryDirectory(prefix="segray-") if storage.in_bucket(out) else None
        self.writer = SummaryWriter(self.folder.name if self.folder else self.place)
        for row in history:
            self.add(row)

    def add(self, row: EpochRow) -> None:
        for name, value in _numbers(row).items():
            self.writer.add_scalar(name, value, row["epoch"])
        self.writer.flush()
        if self.folder:
            for file in Path(self.folder.name).iterdir():
                storage.replace(storage.join(self.place, file.name), file.read_bytes())

    def close(self) -> None:
        self.writer.close()
        if self.folder:
            self.folder.cleanup()


def _mlflow(config: Config, out: str, history: History) -> Track:
    """Log to a run of the experiment `segray`, named like the folder. Its id is kept beside the run."""
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise ConfigError("train.mlflow is set, but mlflow is not installed: pip install 'segray[mlflow]'.") from None
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    try:
        send = _logged(MlflowClient(config.train.mlflow), config, out, history)
    except MlflowException as error:
        why = shortened(str(error).strip().splitlines()[0].split(". ")[0].rstrip("."))
        raise ConfigError(
            f"train.mlflow {config.train.mlflow} cannot be used: {why}. Give a server's address, or leave it out."
        ) from error
    return _kept(send, str(config.train.mlflow), MlflowException)


def _logged(client: Any, config: Config, out: str, history: History) -> Track:
    """Log the settings and all rows so far to a run, and return a function that logs later rows."""
    kept = storage.join(out, MLFLOW_RUN)
    if history and storage.exists(kept):
        run_id = storage.read_bytes(kept).decode()
    else:
        experiment = client.get_experiment_by_name("segray")
        experiment_id = experiment.experiment_id if experiment else client.create_experiment("segray")
        run_id = client.create_run(experiment_id, run_name=storage.name_of(out)).info.run_id
        storage.replace(kept, run_id.encode())
        for section in ("data", "model", "augment", "train"):
            for key, value in config.model_dump(mode="json")[section].items():
                client.log_param(run_id, f"{section}.{key}", value)

    def send(row: EpochRow) -> None:
        for name, value in _numbers(row).items():
            client.log_metric(run_id, name, value, step=row["epoch"])

    for row in history[len(client.get_metric_history(run_id, "loss")) :]:
        send(row)
    return send


def _kept(send: Track, uri: str, failure: type[Exception]) -> Track:
    """Keep rows that cannot be logged, and send them before the next one, so that no run ends because of a tracker."""
    waiting: History = []

    def track(row: EpochRow) -> None:
        waiting.append(row)
        try:
            while waiting:
                send(waiting[0])
                waiting.pop(0)
        except failure as error:
            why = shortened(str(error).strip().splitlines()[0])
            log.warning(f"{uri} does not take epoch {waiting[0]['epoch']}, which is tried again: {why}")

    return track


def _numbers(row: EpochRow) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and math.isfinite(value) and name not in ("epoch", "evaluated")
    }
