"""Types of settings: sizes, times, rates, colours and paths, as they are written and checked."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from segray.core.io import paths

TIME_UNITS = {"s": 1, "m": 60, "h": 3600}
READY_MODELS = ("deeplabv3-coco", "deeplabv3-resnet101-coco", "deeplabv3-mobilenet-coco")  # in core.models.ready
HUB = "smp-hub/"  # before the names of models that smp's authors published
HF = "hf:"  # before the names of models on the Hugging Face Hub
WEIGHT_FILES = (".safetensors", ".pth", ".pt")


def parse_size(value: Any) -> Any:
    """Parse '180x240' (height × width) to (180, 240)."""
    if isinstance(value, str):
        parts = value.lower().replace("×", "x").split("x")
        if len(parts) == 2 and all(part.strip().isdigit() for part in parts):
            return int(parts[0]), int(parts[1])
        raise ValueError("give height x width, such as 180x240")
    return value


def parse_auto(value: Any) -> Any:
    """Take the word auto for nothing, as a setting that is found by itself is not given."""
    return None if value == "auto" else value


def parse_mask_id(value: Any) -> Any:
    """Give the id of a colour such as '#800040', as core.samples.color_id does."""
    if not isinstance(value, str) or not value.startswith("#"):
        return value
    if not re.fullmatch("#[0-9a-fA-F]{6}", value):
        raise ValueError("give a colour as #RRGGBB, such as #800040")
    return 1 << 24 | int(value[1:], 16)


def parse_seconds(value: Any) -> Any:
    """Parse '2h', '90m' or '45s' to seconds."""
    if isinstance(value, str):
        number, unit = value[:-1].strip(), value[-1:]
        if unit not in TIME_UNITS or not number.replace(".", "", 1).isdigit():
            raise ValueError("give a number and s, m or h, such as 2h")
        return float(number) * TIME_UNITS[unit]
    return value


def check_objective(value: str) -> str:
    kind, colon, share = value.partition(":")
    known = value == "miou" or (kind == "pareto" and colon and share.replace(".", "", 1).isdigit())
    if not known or (colon and not 0 < float(share) <= 1):
        raise ValueError("give miou, or pareto: and a share of the best mIoU, such as pareto:0.9")
    return value


def parse_names(value: Any) -> Any:
    """Split 'resnet18,vgg19' to ['resnet18', 'vgg19']; nothing stands for no name, as after a last comma."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def parse_rates(value: Any) -> Any:
    """Split '1e-3,1e-2' to [1e-3, 1e-2], and leave a range a..b as it is."""
    if isinstance(value, str) and ".." in value:
        return value
    try:
        return [float(part) for part in parse_names(value)] if isinstance(value, str | list) else value
    except (TypeError, ValueError):
        raise ValueError("give rates such as 1e-3,1e-2, or a range such as 1e-4..1e-2") from None


def parse_batch(value: Any) -> Any:
    """Parse a number of images; auto stays as it is."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)  # also one of numpy
    number = int(value) if is_whole or (isinstance(value, str) and value.strip().isdigit()) else value
    if isinstance(number, float) and number.is_integer():  # of a range that a sweep draws from
        number = int(number)
    if number != "auto" and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
        raise ValueError("give a number of images, 1 or more, or auto")
    return number


def parse_loss(value: Any) -> Any:
    """Weigh a single loss: 'dice' becomes {'dice': 1.0}."""
    return {value: 1.0} if isinstance(value, str) else value


def check_divisors(value: tuple[float, ...]) -> tuple[float, ...]:
    if min(value) <= 0:
        raise ValueError("give numbers above 0")
    return value


def check_zoom(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1]:
        raise ValueError("give two numbers above 0, the smaller one first, such as [0.5, 2]")
    return value


def is_ready_model(text: str) -> bool:
    """Say whether this is a ready model's name and not a folder. hf:FOLDER is the folder, without the prefix."""
    return text in READY_MODELS or text.startswith(HUB) or (text.startswith(HF) and not _is_folder(text))


def _is_folder(text: str) -> bool:
    name = text.removeprefix(HF)
    return name.startswith(("/", ".", "~")) or paths.in_bucket(name) or os.path.isdir(name)  # noqa: PTH112, as Path raises for some


def _model_place(text: str) -> str:
    return text.removeprefix(HF)


def _is_weights_name(text: str) -> bool:
    return not text.endswith(WEIGHT_FILES)


def check_local(value: str) -> str:
    if "://" in value:
        raise ValueError("give a folder on the disks of the machines")
    return value


def _is_uri(text: str) -> bool:
    return ":" in text or text in ("databricks", "databricks-uc")  # as MLflow accepts them


@dataclass(frozen=True)
class Located:
    """Marks a setting that is a path.

    words: its type for people. is_name: whether a value is a name and no path. plain: makes the path of a value.
    """

    words: str
    is_name: Callable[[str], bool] = lambda text: False
    plain: Callable[[str], str] = str

    def absolute(self, text: str) -> str:
        """Give the path that means the same in every folder; a name stays as it is."""
        return text if self.is_name(text) else paths.absolute(self.plain(text))


class Words(str):
    """Marks a type with its words for people."""


class Unit(str):
    """Marks a setting with the unit of its number."""


Place = Annotated[str, Located("path")]
ModelPlace = Annotated[str, Located("path or name", is_ready_model, _model_place)]
WeightsPlace = Annotated[str, Located("name or path", _is_weights_name)]
UriPlace = Annotated[str, Located("URI or path", _is_uri)]

Rgb = Annotated[tuple[float, float, float], Words("three numbers")]
Size = Annotated[
    tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]],
    BeforeValidator(parse_size),
    PlainSerializer(lambda size: f"{size[0]}x{size[1]}", when_used="json"),
    Words("height x width"),
    Unit("pixels"),
]
Epochs = Annotated[int, Unit("epochs")]
Images = Annotated[int, Unit("images")]
Rows = Annotated[int, Unit("rows")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, validate_default=True, allow_inf_nan=False)
