"""segray.json of a bundle: the facts about a model besides its weights."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from segray.config import PLACES
from segray.core.io import storage
from segray.core.models.places import why_no_bundle
from segray.core.samples import LabelSpace
from segray.core.transforms import IMAGENET_MEAN, IMAGENET_STD, inner_size
from segray.errors import DataError, ModelError, StorageError
from segray.sections.training import ModelSection
from segray.sections.values import Size, check_divisors

WEIGHTS, CONFIG, INFO, CARD = "model.safetensors", "config.json", "segray.json", "README.md"


class BundleInfo(BaseModel):
    """The content of segray.json. model_id names weights and preprocessing: bundles with the same id label alike."""

    schema_version: Literal[1] = 1
    model: ModelSection
    label_space: dict[str, Any]
    input_size: Size
    # stretch to input_size; keep the aspect ratio and pad to it; scale the shorter side to it, but the longer one to
    # longest_px at most; scale to the nearer of its sides; or leave frames as they are
    resize: Literal["stretch", "keep", "short_side", "nearest_side", "none"] = "stretch"
    longest_px: int | None = None
    multiple_of: int = Field(1, ge=1)  # of pixels: short_side rounds each side up to one, nearest_side to the nearest
    resample: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: Annotated[tuple[float, float, float], AfterValidator(check_divisors)] = IMAGENET_STD
    temperature: float = Field(1.0, gt=0)  # logits are divided by it before the softmax
    calibration: dict[str, Any] = {}  # how well the temperature fits, and on which split
    weights_sha256: str = ""
    model_id: str = ""
    data_id: str = ""
    epoch: int = 0
    scores: dict[str, Any] = {}
    confusion: list[list[int]] = []
    config: dict[str, Any] = {}
    versions: dict[str, str] = {}
    source: dict[str, str] = {}  # of a model from elsewhere: its name, and the revision that it is pinned to

    @property
    def space(self) -> LabelSpace:
        return LabelSpace.from_dict(self.label_space)

    def seen_size(self, frame: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) that a frame of this (height, width) is resized to; keep pads that to input_size.

        short_side: as torchvision's Resize and transformers' get_size_with_aspect_ratio; nearest_side: as its
        DPTImageProcessor.
        """
        if self.resize == "none":
            return frame
        if self.resize == "nearest_side":
            scale = min(
                (side / own for side, own in zip(self.input_size, frame, strict=True)), key=lambda x: abs(1 - x)
            )
            height, width = (max(1, round(scale * own / self.multiple_of)) * self.multiple_of for own in frame)
            return height, width
        if self.resize != "short_side":
            return inner_size(frame, self.input_size, self.resize)
        short, long = sorted(frame)
        exact: float = min(self.input_size)
        if self.longest_px and long / short * exact > self.longest_px:
            exact = self.longest_px * short / long
        sides = round(exact), int(exact * long / short)
        least, most = (max(1, -(-side // self.multiple_of)) * self.multiple_of for side in sides)
        return (least, most) if frame[0] <= frame[1] else (most, least)

    def without_places(self) -> BundleInfo:
        """Return the same info without the folders and servers of the machine that trained the model."""
        data = self.model_dump(mode="json")
        for settings in (data, data["config"]):
            for section, field in (key.split(".") for key in PLACES):
                if field in settings.get(section, {}):
                    weights = settings[section].pop(field)
                    if field == "encoder_weights":  # a name, or a file
                        settings[section][field] = storage.name_of(weights)
        return BundleInfo.model_validate(data)


def read_info(uri: str) -> BundleInfo:
    """Read segray.json of a bundle. Raises ModelError that says what is there instead if it is not a bundle."""
    try:
        info = BundleInfo.model_validate_json(storage.read_bytes(storage.join(uri, INFO)))
        LabelSpace.from_dict(info.label_space)
        return info
    except StorageError as error:
        if not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            raise  # the place is not reachable, or may not be read
        raise ModelError(why_no_bundle(uri)) from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise ModelError(f"{uri}: {INFO} is not valid: {where + ': ' if where else ''}{problem['msg']}.") from None
    except (DataError, KeyError, TypeError, ValueError, AttributeError) as error:
        told = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise ModelError(f"{uri}: {INFO} is not valid: label_space: {told}.") from None


def model_id_of(info: BundleInfo) -> str:
    """Hash all that changes a label or its metrics to 12 hex digits: weights, classes, preprocessing, temperature."""
    keys = {"weights_sha256", "label_space", "input_size", "resize", "mean", "std", "schema_version"}
    later = ("temperature", "longest_px", "multiple_of", "resample")  # are left out where they have their defaults
    keys |= {key for key in later if getattr(info, key) != BundleInfo.model_fields[key].default}
    held = info.model_dump(mode="json", include=keys)
    if info.model.options:  # the same weights give other logits with others, as of another output stride
        held["options"] = info.model.model_dump(mode="json")["options"]
    text = json.dumps(held, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
