"""The model bundle: all that labelling needs to know of a trained model, in one folder, local or on S3.

model.safetensors, config.json   as smp's save_pretrained writes them: smp.from_pretrained(folder) loads it
segray.json                      classes, preprocessing, scores, resolved settings, sha256 of the weights
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ValidationError

from segray.config import ModelSection, Size
from segray.core import storage
from segray.core.models import build
from segray.core.samples import LabelSpace
from segray.core.transforms import IMAGENET_MEAN, IMAGENET_STD
from segray.errors import ModelError, StorageError

WEIGHTS, CONFIG, INFO = "model.safetensors", "config.json", "segray.json"


class BundleInfo(BaseModel):
    """segray.json. model_id names weights and preprocessing: two bundles with one id label alike."""

    schema_version: int = 1
    model: ModelSection
    label_space: dict[str, Any]
    input_size: Size
    resize: Literal["stretch", "short_side"] = "stretch"  # to input_size, or to its shorter side; and logits back
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    weights_sha256: str = ""
    model_id: str = ""
    data_id: str = ""
    epoch: int = 0
    scores: dict[str, Any] = {}
    confusion: list[list[int]] = []
    config: dict[str, Any] = {}
    versions: dict[str, str] = {}


def save(folder: Path, model: torch.nn.Module, info: BundleInfo) -> BundleInfo:
    """Write the bundle beside `folder` and swap it in; what was there before is replaced. Gives info with its ids."""
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    try:
        save_model(temporary, model, info.model)
        info = info.model_copy()
        info.weights_sha256 = hashlib.sha256((temporary / WEIGHTS).read_bytes()).hexdigest()
        info.model_id = _model_id(info)
        info.versions = {name: version(name) for name in ("segray", "torch", "segmentation-models-pytorch")}
        (temporary / INFO).write_text(info.model_dump_json(indent=2))
        (temporary / "README.md").unlink(missing_ok=True)  # smp's card speaks of smp's example, not of this model
        swap(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return info


def save_model(folder: Path, model: torch.nn.Module, section: ModelSection) -> None:
    """Weights and config.json: as smp writes them for its own, in the same files for others."""
    from safetensors.torch import save_file

    if hasattr(model, "save_pretrained"):
        model.save_pretrained(str(folder))
        return
    folder.mkdir(parents=True)
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(
        section.model_dump_json(indent=2, include={"arch", "encoder", "batch_norm", "options"})
    )


def swap(new: Path, target: Path) -> None:
    """Put folder `new` in the place of `target`. A kill between the two renames leaves neither half-written."""
    old = target.with_name(f".{target.name}.{uuid.uuid4().hex}.old")
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def read_info(uri: str) -> BundleInfo:
    """segray.json of a bundle. ModelError when the folder is not one."""
    try:
        return BundleInfo.model_validate_json(storage.read_bytes(storage.join(uri, INFO)))
    except StorageError:
        raise ModelError(
            f"{uri} is not a model bundle: it has no {INFO}. Give the folder best/ of a finished run."
        ) from None
    except ValidationError as error:
        raise ModelError(f"{uri}: {INFO} is not valid: {error.errors()[0]['msg']}.") from None


def load(uri: str) -> tuple[torch.nn.Module, BundleInfo]:
    """The model in eval mode on the CPU, and what is known of it. ModelError when weights are not those saved."""
    from safetensors import SafetensorError
    from safetensors.torch import load as load_weights

    info = read_info(uri)
    data = storage.read_bytes(storage.join(uri, WEIGHTS))
    if hashlib.sha256(data).hexdigest() != info.weights_sha256:
        raise ModelError(f"{uri}/{WEIGHTS} is not the file that was saved (sha256 differs); copy the bundle again.")
    model = build(info.model, len(info.label_space["names"]))
    try:
        model.load_state_dict(load_weights(data))
    except (SafetensorError, RuntimeError) as error:
        raise ModelError(
            f"{uri}/{WEIGHTS} does not fit {info.model.arch} over {info.model.encoder} with "
            f"{len(info.label_space['names'])} classes, as {INFO} says: {str(error).splitlines()[-1].strip()}"
        ) from error
    return model.eval(), info


def resolve(uri: str, weights_dir: str | None = None) -> str:
    """A bundle's place: itself, or where the ready model of that name is kept, made there at first use."""
    from segray.core.models import ready

    return ready.bundle_of(uri, weights_dir) if ready.is_ready(uri) else uri


def label_space(info: BundleInfo) -> LabelSpace:
    return LabelSpace.from_dict(info.label_space)


def _model_id(info: BundleInfo) -> str:
    """12 hex digits of everything that changes a label: weights, classes, preprocessing."""
    keys = {"weights_sha256", "label_space", "input_size", "resize", "mean", "std", "schema_version"}
    text = json.dumps(info.model_dump(mode="json", include=keys), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def count_parameters(uri: str) -> int:
    """Weights that are learned and statistics that are kept, from the header of the safetensors file."""
    from safetensors import safe_open

    with safe_open(storage.join(uri, WEIGHTS), framework="numpy") as file:
        return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
