"""A run's folder, local or in a bucket ↔ what training needs to resume: last.pt is the one commit point of an epoch.

config.yaml     its settings
last.pt         weights, EMA weights, optimizer, scaler, and the history, after the last complete epoch
history.jsonl   a line an epoch, rewritten from last.pt's
"""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

from segray.config import Config, parse
from segray.core.io import storage
from segray.core.metrics import Headlines
from segray.errors import ModelError
from segray.sections.training import TrainSection

if TYPE_CHECKING:
    import torch  # imported in functions otherwise: a history is read without it

SETTINGS, STATE, HISTORY, BEST = "config.yaml", "last.pt", "history.jsonl", "best"


class TrainedRow(TypedDict):
    """The results of one pass over the training frames; epochs are counted from 1.

    loss, train_…: of frames as augmented. learning_rate: of the last step. wait_share: share of `seconds` in which the
    device waited for data. batch_size and accumulate: as they were used; rows of older versions lack them.
    """

    epoch: int
    loss: float
    train_miou: float | None
    train_pixel_accuracy: float | None
    learning_rate: float
    images_per_s: float
    wait_share: float
    seconds: float
    batch_size: int
    accumulate: int


class EpochRow(TrainedRow, Headlines):
    """A row of history; the headlines are of the validation split. What is undefined is nan, and None in a file.

    device: what all workers together computed on, as '8 × H100 80GB HBM3, bf16'.
    """

    device: str
    evaluated: bool  # rows of older versions lack it, and were evaluated
    val_loss: float | None


History = list[EpochRow]
WRITTEN = {  # command → sections that it writes whole into its folder, and has done from the first version on
    "sweep": {"data", "model", "augment", "train", "sweep"},
    "evaluate": {"data", "infer", "evaluate", "cluster"},
    "train": {"data", "model", "augment", "train"},
}


class Stateful(Protocol):
    """An object whose state a checkpoint keeps: a module, an optimizer, a scaler."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object: ...


def read_settings(out: str) -> Config:
    """Read the settings that a run was started with. Raises StorageError if there are none."""
    place = storage.join(out, SETTINGS)
    return parse(storage.read_bytes(place), place)


def command_of(out: str) -> str:
    """Return the command whose settings a run's folder holds; "" for a file that a person wrote."""
    given = read_settings(out).model_fields_set
    return next((command for command, sections in WRITTEN.items() if sections <= given), "")


def has_results(out: str) -> bool:
    """Say whether a training run has completed an epoch."""
    return any(storage.exists(storage.join(out, name)) for name in (STATE, HISTORY, BEST))


def snapshot(parts: Mapping[str, Stateful]) -> dict[str, Any]:
    """Copy the state of `parts` into CPU memory of its own, from which it can be written while training goes on."""
    import torch

    copied = {name: _on_host(part.state_dict()) for name, part in parts.items()}
    if torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()  # once for all copies
    return copied


def _on_host(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        pinned = value.device.type == "cuda"  # from pageable memory, each copy would wait for the device
        return torch.empty_like(value, device="cpu", pin_memory=pinned).copy_(value, non_blocking=pinned)
    if isinstance(value, dict):
        copied = copy.copy(value)  # keeps the versions that a module's state carries as an attribute
        copied.update({key: _on_host(item) for key, item in value.items()})
        return copied
    return [_on_host(item) for item in value] if isinstance(value, list) else value


def with_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], prefix: str = "") -> torch.nn.Module:
    """Return a copy of `model` that holds `weights`, under its own names after `prefix`. No tensor is copied."""
    own = model.state_dict(keep_vars=True)
    return copy.deepcopy(model, {id(tensor): weights[prefix + name] for name, tensor in own.items()})


class Background:
    """A thread that writes beside training, one epoch at a time. Its error is raised here, at the next call.

    The block waits at its end for what is being written, also after an error, Ctrl-C or SIGTERM.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._work: Future[list[object]] | None = None

    def __enter__(self) -> Background:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()

    def start(self, work: Sequence[Callable[[], object]]) -> None:
        """Do these one after the other, up to the first error."""
        self.wait()
        self._work = self._thread.submit(lambda: [do() for do in work])

    def check(self) -> None:
        """Raise the error of what has ended with one."""
        if self._work is not None and self._work.done():
            self.wait()

    def wait(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            work.result()


def save_state(out: str, state: Mapping[str, Any], history: History) -> None:
    """Write a snapshot and its history; the epoch is complete when last.pt is replaced."""
    import torch

    file = io.BytesIO()
    torch.save({**state, "history": history}, file)
    storage.replace(storage.join(out, STATE), file.getvalue())
    write_history(out, history)


def load_state(out: str, parts: Mapping[str, Stateful], device: torch.device) -> History:
    """Restore the last complete epoch into `parts`, and return the history up to it; [] before the first."""
    import torch

    path = storage.join(out, STATE)
    if not storage.exists(path):
        return []
    file = io.BytesIO(storage.read_bytes(path))
    try:
        state = torch.load(file, map_location=device, weights_only=True)
        for name, part in parts.items():
            if state[name] or name != "scaler":  # it is empty where the precision needed none; this device's may
                part.load_state_dict(state[name])
        history: History = state["history"]
        return history
    except (RuntimeError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
        text = [*str(error).splitlines(), type(error).__name__][0]  # the EOFError of an empty file has no text
        raise ModelError(f"{path} cannot be continued from: {text}") from error


def write_history(out: str, history: History) -> None:
    storage.replace(storage.join(out, HISTORY), "".join(json.dumps(plain(row)) + "\n" for row in history).encode())


def plain(row: EpochRow) -> dict[str, Any]:
    """Return the row as JSON holds it."""
    return {key: None if value != value else value for key, value in row.items()}


def read_history(out: str) -> History:
    """Read the rows of a run so far; [] in its first epoch. Raises DataError for a file that is not a history."""
    path = storage.join(out, HISTORY)
    lines = storage.read_bytes(path).splitlines() if storage.exists(path) else []
    return [storage.parse_json(line, f"{path} line {number}") for number, line in enumerate(lines, start=1)]


def is_evaluated(row: EpochRow) -> bool:
    """Say whether this epoch was evaluated, as every train.eval_every-th is."""
    return row.get("evaluated", True)


def scores_of(history: Sequence[EpochRow]) -> list[float]:
    """List the mIoU of the epochs where it is defined."""
    return [row["miou"] for row in history if row["miou"] is not None]


def best_epoch(history: Sequence[EpochRow]) -> int:
    """Return the first epoch of the highest mIoU, counted from 1, or 0 if there is none.

    An undefined mIoU (nan, None) ranks below all. If any epoch was evaluated, only evaluated epochs count.
    """

    def rank(row: EpochRow) -> tuple[bool, float]:
        miou = row["miou"]
        return is_evaluated(row), -1.0 if miou is None or miou != miou else miou

    ranks = [rank(row) for row in history]
    return ranks.index(max(ranks)) + 1 if ranks else 0


def is_finished(config: TrainSection, history: Sequence[EpochRow]) -> bool:
    """Say whether all epochs are done, or an evaluation shows that `patience` of them brought no better mIoU."""
    patience, looked = config.patience, bool(history) and is_evaluated(history[-1])
    tired = looked and patience is not None and len(history) - best_epoch(history) >= patience
    return len(history) >= config.epochs or tired
