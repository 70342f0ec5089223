"""The model bundle: all that labelling needs to know of a trained model, in one folder, local or on S3.

model.safetensors, config.json   as smp's save_pretrained writes them: smp.from_pretrained(folder) loads it
segray.json                      classes, preprocessing, scores, resolved settings, sha256 of the weights
README.md                        the same for people, as a card of the Hugging Face Hub
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field, ValidationError
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from segray import __version__
from segray.config import PLACES, ModelSection, Size, is_ready_model
from segray.core import storage
from segray.core.models import build, forward
from segray.core.models.card import card
from segray.core.samples import LabelSpace
from segray.core.transforms import IMAGENET_MEAN, IMAGENET_STD
from segray.errors import ModelError, StorageError

WEIGHTS, CONFIG, INFO, CARD = "model.safetensors", "config.json", "segray.json", "README.md"
FOLD_SIZE = (64, 96)  # height, width of the frame that a folded model is tried with
FOLD_TOLERANCE, FOLD_SAME = 1e-3, 0.9999  # of the logits' spread; share of pixels with one and the same class


class BundleInfo(BaseModel):
    """segray.json. model_id names weights and preprocessing: two bundles with one id label alike."""

    schema_version: int = 1
    model: ModelSection
    label_space: dict[str, Any]
    input_size: Size
    resize: Literal["stretch", "short_side"] = "stretch"  # to input_size, or to its shorter side; and logits back
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    temperature: float = Field(1.0, gt=0)  # that logits are divided by, before they are probabilities
    calibration: dict[str, Any] = {}  # how well it fits, and on which split
    weights_sha256: str = ""
    model_id: str = ""
    data_id: str = ""
    epoch: int = 0
    scores: dict[str, Any] = {}
    confusion: list[list[int]] = []
    config: dict[str, Any] = {}
    versions: dict[str, str] = {}


def save(folder: str | Path, model: torch.nn.Module, info: BundleInfo) -> BundleInfo:
    """Write the bundle to `folder`, over the one that was there before. Gives info with its ids."""
    with beside(str(folder)) as temporary:
        save_model(temporary, model, info.model)
        info = info.model_copy()
        info.weights_sha256 = hashlib.sha256((temporary / WEIGHTS).read_bytes()).hexdigest()
        info.model_id = _model_id(info)
        libraries = {name: version(name) for name in ("torch", "segmentation-models-pytorch")}
        info.versions = {"segray": __version__} | libraries
        (temporary / INFO).write_text(info.model_dump_json(indent=2))
        (temporary / CARD).write_bytes(card(info).encode())  # in the place of smp's, which speaks of smp's example
    return info


@contextmanager
def beside(folder: str) -> Iterator[Path]:
    """A local folder to make; when the block ends well, it is put in the place of `folder`.

    Local, by two renames: a kill between them leaves neither half-written. On S3 file by file, segray.json last:
    until then the sha256 in the older one refuses the newer weights.
    """
    if not storage.is_s3(folder):
        target = Path(folder)
        temporary, old = (target.with_name(f".{target.name}.{uuid.uuid4().hex}.{end}") for end in ("tmp", "old"))
        try:
            yield temporary
            if target.exists():
                target.rename(old)
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
        return
    with tempfile.TemporaryDirectory(prefix="segray-") as there:
        yield (temporary := Path(there) / "bundle")
        for file in sorted(temporary.iterdir(), key=lambda file: file.name == INFO):
            storage.replace(storage.join(folder, file.name), file.read_bytes())


def save_model(folder: Path, model: torch.nn.Module, section: ModelSection) -> None:
    """Weights and config.json: as smp writes them for its own, in the same files for others."""
    from safetensors.torch import save_file

    if own_save := getattr(model, "save_pretrained", None):
        own_save(str(folder))
        return
    folder.mkdir(parents=True)
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(
        section.model_dump_json(indent=2, include={"arch", "encoder", "batch_norm", "options"})
    )


def copy_to(folder: str, place: str) -> None:
    """Put the bundle that is at `place` in the place of `folder`; either may be on S3."""
    with beside(folder) as temporary:
        temporary.mkdir()
        for entry in storage.list_files(place):
            (temporary / storage.name_of(entry.uri)).write_bytes(storage.read_bytes(entry.uri))


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


def check_writable(uri: str) -> None:
    """StorageError unless segray.json can be written; it is, as it stands."""
    there = storage.join(uri, INFO)
    storage.replace(there, storage.read_bytes(there))


def set_temperature(uri: str, temperature: float, fit: dict[str, Any]) -> BundleInfo:
    """Write another temperature, and how well it fits, into segray.json; with it the bundle has another model_id."""
    info = read_info(uri).model_copy(update={"temperature": temperature, "calibration": fit})
    info.model_id = _model_id(info)
    storage.replace(storage.join(uri, INFO), info.model_dump_json(indent=2).encode())
    storage.replace(storage.join(uri, CARD), card(info).encode())
    return info


def fold_batch_norm(model: torch.nn.Module) -> torch.nn.Module:
    """An equal model in eval mode whose convolutions do the work of the batch norm after them; `model` is unchanged.

    Where that gives other logits, or nothing can be folded, it is `model` itself.
    """
    folded = copy.deepcopy(model)
    names: dict[torch.nn.Module, list[str]] = {}
    for name, module in folded.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    for conv, norm in _foldable(folded):
        for module, other in ((conv, fuse_conv_bn_eval(conv, norm)), (norm, torch.nn.Identity())):
            for name in names[module]:
                folded.set_submodule(name, other)
    image = torch.randn(2, 3, *FOLD_SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before, after = forward(model, image), forward(folded, image)
    near = (after - before).abs().max() <= FOLD_TOLERANCE * (before.max() - before.min())
    same = (after.argmax(1) == before.argmax(1)).float().mean() >= FOLD_SAME
    return folded if near and same else model


def _foldable(model: torch.nn.Module) -> list[tuple[torch.nn.Conv2d, torch.nn.BatchNorm2d]]:
    """Pairs of modules where the norm takes the very tensor that the convolution gave, and nothing else uses it.

    Seen in one forward pass; its tensors are kept meanwhile, so that no two have one identity.
    """
    made: dict[torch.Tensor, torch.nn.Conv2d] = {}
    taken: list[tuple[torch.Tensor, torch.nn.BatchNorm2d]] = []
    calls: Counter[torch.nn.Module] = Counter()
    uses: Counter[torch.Tensor] = Counter()

    class Uses(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor | tuple | list):  # not dim(), not shape
                uses.update({leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)})
            return result

    def note(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        calls[module] += 1
        if type(module) is torch.nn.Conv2d:  # a subclass may do more than convolve
            made[output] = module
        elif type(module) is torch.nn.BatchNorm2d:
            taken.append((args[0], module))

    kinds = (torch.nn.Conv2d, torch.nn.BatchNorm2d)
    hooks = [module.register_forward_hook(note) for module in model.modules() if type(module) in kinds]
    with torch.inference_mode(), Uses():
        forward(model, torch.zeros(1, 3, *FOLD_SIZE))
    for hook in hooks:
        hook.remove()
    return [
        (made[tensor], norm)
        for tensor, norm in taken
        if tensor in made and calls[made[tensor]] == calls[norm] == uses[tensor] == 1 and norm.running_mean is not None
    ]


def resolve(uri: str, weights_dir: str | None = None) -> str:
    """A bundle's place: itself, or where the ready model of that name is kept, made there at first use."""
    from segray.core.models import ready

    return ready.bundle_of(uri, weights_dir) if is_ready_model(uri) else uri


def without_places(info: BundleInfo) -> BundleInfo:
    """The same model, told without the folders and servers of the machine that trained it."""
    data = info.model_dump(mode="json")
    for settings in (data, data["config"]):
        for section, field in (key.split(".") for key in PLACES):
            if field in settings.get(section, {}):
                weights = settings[section].pop(field)
                if field == "encoder_weights":  # a name, or a file
                    settings[section][field] = storage.name_of(weights)
    return BundleInfo.model_validate(data)


def label_space(info: BundleInfo) -> LabelSpace:
    return LabelSpace.from_dict(info.label_space)


def _model_id(info: BundleInfo) -> str:
    """12 hex digits of everything that changes a label or its figures: weights, classes, preprocessing, temperature."""
    keys = {"weights_sha256", "label_space", "input_size", "resize", "mean", "std", "schema_version"}
    if info.temperature != 1:
        keys.add("temperature")
    text = json.dumps(info.model_dump(mode="json", include=keys), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def count_parameters(uri: str) -> int:
    """Weights that are learned and statistics that are kept, from the header of the safetensors file.

    That is 8 bytes with its length, least significant first, then JSON (safetensors' README, Format).
    """
    with storage.open_read(storage.join(uri, WEIGHTS)) as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
