"""segray.json of a bundle: the facts about a model besides its weights."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from segray.config import PLACES
from segray.core.io import storage
from segray.core.samples import LabelSpace
from segray.core.transforms import IMAGENET_MEAN, IMAGENET_STD
from segray.errors import ModelError, StorageError
from segray.sections.training import ModelSection
from segray.sections.values import Size

WEIGHTS, CONFIG, INFO, CARD = "model.safetensors", "config.json", "segray.json", "README.md"


class BundleInfo(BaseModel):
    """The content of segray.json. model_id names weights and preprocessing: bundles with the same id label alike."""

    schema_version: int = 1
    model: ModelSection
    label_space: dict[str, Any]
    input_size: Size
    # stretch to input_size, keep the aspect ratio and pad to it, or scale the shorter side to it
    resize: Literal["stretch", "keep", "short_side"] = "stretch"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
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

    @property
    def space(self) -> LabelSpace:
        return LabelSpace.from_dict(self.label_space)

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
    """Read segray.json of a bundle. Raises ModelError if the folder is not a bundle."""
    try:
        return BundleInfo.model_validate_json(storage.read_bytes(storage.join(uri, INFO)))
    except StorageError:
        raise ModelError(
            f"{uri} is not a model bundle: it has no {INFO}. Give the folder best/ of a finished run."
        ) from None
    except ValidationError as error:
        raise ModelError(f"{uri}: {INFO} is not valid: {error.errors()[0]['msg']}.") from None


def model_id_of(info: BundleInfo) -> str:
    """Hash all that changes a label or its metrics to 12 hex digits: weights, classes, preprocessing, temperature."""
    keys = {"weights_sha256", "label_space", "input_size", "resize", "mean", "std", "schema_version"}
    if info.temperature != 1:
        keys.add("temperature")
    text = json.dumps(info.model_dump(mode="json", include=keys), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
