"""What can go wrong, as one small tree; each message says the value, the rule and the next step.

SegrayError            one line for the user, exit code 1
├── ConfigError        a setting is unknown, ill-typed or contradictory; exit code 2
├── DataError          labelled or unlabelled input that cannot be used
│   ├── InputChanged   a file is not the one that the plan saw
│   ├── InputMissing   a file that the plan saw is gone
│   ├── InputTooLarge  a frame that the memory does not hold
│   ├── InputUnlabelled  a frame of which the model makes no mask
│   ├── InputUnreadable  a file that is there and may not be read
│   ├── TooManyErrors  more rows failed than the limit allows; exit code 3
│   └── TrainingDiverged  the loss is not a number any more
├── ModelError         an architecture, encoder or bundle that cannot be used
│   ├── UnknownModel   a name that no architecture or encoder has; exit code 2
│   └── ModelTooLarge  a model, with its batch, that the device's memory does not hold
├── StorageError       a place that cannot be read or written
│   └── AccessDenied   one that this machine may not read or write, and another may
├── OutputExists       something was written there before, and would be lost
└── ClusterError       Ray cannot give what was asked, or lost a worker
Terminated             SIGTERM came; it unwinds as Ctrl-C does, exit code 143
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST_LINE = 300  # characters of a foreign error: some contain a whole tensor


class SegrayError(Exception):
    """Base of every error that a user can fix; `str(error)` is the whole message."""

    exit_code = 1


class ConfigError(SegrayError):
    """A setting is unknown, ill-typed or contradictory."""

    exit_code = 2


class DataError(SegrayError):
    """Labelled or unlabelled input that cannot be used."""


class InputChanged(DataError):
    """A file is not the one that the plan saw."""


class InputMissing(DataError):
    """A file that the plan saw is gone."""


class InputTooLarge(DataError):
    """A frame that the memory does not hold."""


class InputUnlabelled(DataError):
    """A frame of which the model makes no mask."""


class InputUnreadable(DataError):
    """A file that is there and may not be read."""


class TooManyErrors(DataError):
    """More rows failed than the limit allows."""

    exit_code = 3


class TrainingDiverged(DataError):
    """The loss is not a number any more; every worker raises it in the same step of the run."""


class ModelError(SegrayError):
    """An architecture, encoder or bundle that cannot be used."""


class UnknownModel(ModelError):
    """A name that no architecture or encoder has."""

    exit_code = 2


class ModelTooLarge(ModelError):
    """A model, with its batch, that the device's memory does not hold."""


class StorageError(SegrayError):
    """A place that cannot be read or written."""


class AccessDenied(StorageError):
    """A place that this machine may not read or write: others may have credentials for it."""


class OutputExists(SegrayError):
    """Something was written there before, and would be lost."""


class ClusterError(SegrayError):
    """Ray cannot provide what was requested, or lost a worker."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, as sent by `segray stop`, `kill` and the reclaiming of a spot machine."""

    exit_code = 143


def in_a_line(error: BaseException) -> str:
    """Put an exception that is not ours into one line, for a message.

    >>> in_a_line(RuntimeError("CUDA error: unspecified launch failure\\nFor debugging consider …"))
    'RuntimeError: CUDA error: unspecified launch failure'
    """
    text = shortened((str(error).strip().splitlines() or [""])[0])
    return f"{type(error).__name__}: {text}".rstrip(": .")


def shortened(text: str) -> str:
    """Shorten a foreign text to what people will read."""
    return text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}…"


def nearest(name: str, valid: Iterable[str], most: int = 3) -> str:
    """Return a closing sentence that names the nearest valid names.

    >>> nearest("resnet81", ["resnet18", "vgg19"])
    ' Did you mean resnet18?'
    """
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=most, cutoff=0.5)
    if close:
        return f" Did you mean {' or '.join(close)}?"
    return f" Valid: {', '.join(names[:20])}{', …' if len(names) > 20 else ''}."
