"""Where pretrained encoders come from, and the pixels that they expect."""

from __future__ import annotations

import io
import logging
import pickle
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from segray.core.formatting import counted
from segray.core.io import storage
from segray.core.transforms import IMAGENET_MEAN, IMAGENET_STD
from segray.errors import ConfigError, ModelError, StorageError
from segray.sections.training import ModelSection
from segray.sections.values import WEIGHT_FILES, Rgb

HALF = (0.5, 0.5, 0.5)
DPN = ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3)
# Encoders whose weights were trained on other pixels than ImageNet's usual: timm's pretrained_cfg of the same files.
OTHER_PIXELS = {
    "inception": (HALF, HALF),
    "xception": (HALF, HALF),
    "dpn": DPN,
    "timm-tf_efficientnet_lite": (HALF, HALF),
}
SAFE = (
    " Save its tensors alone where it was made: torch.save(model.state_dict(), FILE), or of a checkpoint "
    'torch.save(checkpoint["state_dict"], FILE).'
)
OBJECT = re.compile(r"GLOBAL ([\w.]+)")  # in torch's text: what it would have to unpickle
CUT = ("PytorchStreamReader", "central directory", "Ran out of input", "header", "unexpected EOF", "truncated")
PREFIXES = ("module.", "model.", "encoder.", "backbone.", "features.")
ANSWER_S = 10.0  # as the hub's client waits for an answer
OF_TORCHVISION = "mobilenet_v3_large"  # an encoder of deeplabv3-torchvision that smp does not have

Weights = Mapping[str, torch.Tensor]


def encoder_weights(config: ModelSection) -> Weights | None:
    """Return the weights named by `model.encoder_weights` as a state dict; None for `none`. A run's driver calls it.

    If `model.weights_dir` is given, a name is looked up there as <encoder>.<name>.safetensors, else it is loaded
    by smp (timm for tu- encoders) into the Hugging Face cache. A path ending in .safetensors, .pth or .pt is read,
    never unpickled. Raises ModelError that says which file belongs where.
    """
    name = config.encoder_weights
    if name == "none":
        return None
    if not config.has_encoder:
        raise ModelError(f"{config.arch} has no encoder for {name} weights; it trains from scratch: leave them out.")
    if name.endswith(WEIGHT_FILES):
        uri = storage.absolute(name)
    elif config.weights_dir is not None:
        uri = storage.join(storage.absolute(config.weights_dir), file_name(config))
    else:
        return _library(config)
    return _timm_file(config, uri) if config.encoder.startswith("tu-") else read(uri)


def has_imagenet(config: ModelSection) -> bool:
    """Say whether ImageNet weights are published for the encoder; nothing is downloaded."""
    if not config.has_encoder:
        return False
    if config.encoder.startswith("tu-"):
        import timm

        about: Any = timm.get_pretrained_cfg(config.encoder.removeprefix("tu-"))
        return bool(about and about.has_weights)
    return "imagenet" in (_published(config.encoder) or ())


def _published(encoder: str) -> tuple[str, ...] | None:
    """List the names of an encoder's pretrained weights; None where smp lists none, as for timm's encoders."""
    from segmentation_models_pytorch.encoders import encoders

    if encoder == OF_TORCHVISION:
        return ("imagenet",)
    return tuple(encoders[encoder]["pretrained_settings"]) if encoder in encoders else None


def file_name(config: ModelSection) -> str:
    return f"{config.encoder}.{config.encoder_weights}.safetensors"


def load_encoder(encoder: torch.nn.Module, weights: Weights) -> None:
    """Load the weights into the encoder, except a classifier's head. Raises ModelError if they are another encoder's.

    smp's encoders accept their older names themselves; counters of batch norms may be missing, as in older files.
    """
    mine = encoder.state_dict()
    stages = {key.split(".")[0] for key in mine}
    given = _without_prefix(dict(weights), mine)
    found = {key: value for key, value in given.items() if key.split(".")[0] in stages}
    try:
        encoder.load_state_dict(dict(found))  # a copy, because densenet's renames keys in place
    except RuntimeError as error:
        missing = [key for key in mine if key not in found and not key.endswith("num_batches_tracked")]
        more = [key for key in given if key not in mine]
        other = [
            f"{key} {(*value.shape,)}" for key, value in found.items() if key in mine and value.shape != mine[key].shape
        ]
        raise ModelError(
            f"The weights are another encoder's, or under other names: of the encoder's {len(mine)} tensors "
            f"{len(missing)} are missing{such_as(missing)}; of the file's {len(given)}, {len(more)} are unknown"
            f"{such_as(more)} and {len(other)} of another shape{such_as(other)}. Give the weights of the "
            "encoder that model.encoder names, under the names of segmentation-models-pytorch, timm or torchvision."
        ) from error


def such_as(names: list[str]) -> str:
    """Give the first of some names as an example; nothing where there is none."""
    return f" (such as {names[0]})" if names else ""


def preprocessing(config: ModelSection) -> tuple[Rgb, Rgb]:
    """Return (mean, std) of RGB in 0..1: model.mean and model.std, else those of the encoder's published weights.

    A weights file, wherever it lies, is assumed to match the published ones. Random weights get ImageNet's values.
    """
    mean, std = _published_pixels(config)
    return config.mean or mean, config.std or std


def check_pixels(config: ModelSection) -> None:
    """Raise ConfigError for mean and deviation of pixels in 0..255, as other programs have them."""
    for key, values in (("mean", config.mean), ("std", config.std)):
        if values and max(values) > 1:
            own = ", ".join(f"{value / 255:.3f}" for value in values)
            raise ConfigError(f"model.{key} is of RGB in 0..1, and {max(values):g} is above 1; of 255 it is [{own}].")


def _published_pixels(config: ModelSection) -> tuple[Rgb, Rgb]:
    name = config.encoder
    if config.encoder_weights == "none":
        return IMAGENET_MEAN, IMAGENET_STD
    if name.startswith("tu-"):
        import timm

        about: Any = timm.get_pretrained_cfg(name.removeprefix("tu-"))
        return (tuple(about.mean), tuple(about.std)) if about else (IMAGENET_MEAN, IMAGENET_STD)
    if config.encoder_weights == "advprop":
        return HALF, HALF
    return next(
        (pixels for start, pixels in OTHER_PIXELS.items() if name.startswith(start)), (IMAGENET_MEAN, IMAGENET_STD)
    )


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Silence the hub's lines about its retries. Where nothing answers, look into its cache alone, and raise why.

    Its client tries again for half a minute, also where there is no network.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    logger = logging.getLogger("huggingface_hub")
    level, offline, silence = logger.level, constants.HF_HUB_OFFLINE, _silence_of_hub()
    logger.setLevel(logging.CRITICAL)
    constants.HF_HUB_OFFLINE = silence is not None
    try:
        yield
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise silence or error from error
    finally:
        constants.HF_HUB_OFFLINE = offline
        logger.setLevel(level)


def _silence_of_hub() -> Exception | None:
    """Return why the hub cannot be asked; None where something answers."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_S)
    except Exception as error:  # of the client's library, which is another one in each of its versions
        return error
    return None


def first_words(error: BaseException) -> str:
    """Return the first sentence of a long error."""
    return [*str(error).splitlines(), type(error).__name__][0].split(". ")[0].rstrip(".")


def read(uri: str) -> Weights:
    """Read a state dict of tensors: .safetensors, or what torch.save wrote, of which nothing else is unpickled."""
    return state_of(read_file(uri), uri)


def read_file(uri: str) -> Any:
    """Read what a file of weights holds: tensors, and plain data around them. ModelError for anything else."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = storage.read_bytes(uri)
        return load(data) if uri.endswith(".safetensors") else torch.load(io.BytesIO(data), "cpu", weights_only=True)
    except StorageError as error:
        raise ModelError(
            f"{error} Put the weights there; `segray models` lists which there are for encoders."
        ) from None
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ModelError(_why_unread(uri, str(error) or type(error).__name__)) from None


def _why_unread(uri: str, text: str) -> str:
    if isinstance(found := OBJECT.search(text), re.Match):
        return (
            f"{uri} holds no weights that can be read safely: it has an object of {found[1]} beside or around its "
            f"tensors, which could run code.{SAFE}"
        )
    first = text.splitlines()[0].rstrip(".")
    if any(word in first for word in CUT):
        return f"{uri} is no whole file of weights ({first.split('. ')[0]}). Copy it again."
    return f"{uri} holds no weights that can be read safely: {first}.{SAFE}"


def check_numbers(state: Weights, uri: str) -> None:
    """Raise ModelError for weights that hold nan, of which every logit would be nan as well."""
    if bad := [name for name, tensor in state.items() if tensor.isnan().any()]:
        raise ModelError(
            f"{uri} holds nan in {counted(len(bad), 'tensor')}{such_as(bad)}, as of a training run that diverged, and "
            "would give every pixel the same class. Give an earlier checkpoint."
        )


def state_of(state: Any, uri: str) -> Weights:
    """Return the state dict in what read_file() gave: itself, or the one that a training program put into it."""
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if is_state(state):
        found: Weights = state
        return found
    inside = [key for key, value in state.items() if is_state(value)] if isinstance(state, dict) else []
    if len(inside) == 1:
        return state_of(state[inside[0]], uri)
    if inside:
        raise ModelError(
            f"{uri} holds several state dicts: {', '.join(map(str, inside))}. Save one of them alone: torch.save("
            f"torch.load(FILE)[{inside[0]!r}], NEW)."
        )
    holds = f" with {', '.join(list(map(str, state))[:6])}" if isinstance(state, dict) else ""
    raise ModelError(f"{uri} holds {type(state).__name__}{holds}, not a state dict of tensors.{SAFE}")


def is_state(value: Any) -> bool:
    """Say whether this is a state dict of tensors."""
    return isinstance(value, dict) and bool(value) and all(isinstance(one, torch.Tensor) for one in value.values())


def _without_prefix(weights: dict[str, Any], mine: Mapping[str, Any]) -> dict[str, Any]:
    for prefix in PREFIXES:
        cut = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        if len(cut.keys() & mine.keys()) > len(weights.keys() & mine.keys()):
            weights = cut
    return weights


def _timm_file(config: ModelSection, uri: str) -> Weights:
    """Load a file of timm's with timm's own loader, which maps the whole model's names to the backbone's."""
    state = read(uri)
    if any(key.startswith("encoder.model.") for key in state):  # a segray bundle, whose names are the encoder's
        return state
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / storage.name_of(uri)
        file.write_bytes(storage.read_bytes(uri))
        try:
            loaded = _pretrained(config, pretrained_cfg_overlay={"file": str(file)})
        except RuntimeError as error:
            raise ModelError(
                f"{uri} does not hold timm's weights of {config.encoder}: {first_words(error)}."
            ) from error
    mine, found = _beginnings(loaded), _beginnings(state)
    if len(mine & found) < 0.75 * len(mine):  # timm ignores missing weights; positions and patches are resized
        raise ModelError(
            f"{uri} does not hold timm's weights of {config.encoder}: {len(mine & found)} of {len(mine)} are there."
        )
    return loaded


def _beginnings(weights: Weights) -> set[tuple[float, ...]]:
    """Return the first values of each matrix or kernel, which identify it whatever its name."""
    return {tuple(value.flatten()[:8].tolist()) for value in weights.values() if value.ndim > 1}


def _library(config: ModelSection) -> Weights:
    """Load weights with smp's own loader (timm's for tu- encoders), which uses a cached file without the network."""
    known = _published(config.encoder)
    if known is not None and config.encoder_weights not in known:
        raise ModelError(
            f"model.encoder_weights {config.encoder_weights!r} is none of {config.encoder}'s: "
            f"{', '.join(known) or 'it has no pretrained ones'}. Or give none, or a file."
        )
    try:
        with quiet_hub():
            return _pretrained(config)
    except Exception as error:  # the loaders raise many kinds of errors: connection, cache, hub, hash
        raise ModelError(
            f"The {config.encoder_weights} weights of {config.encoder} could not be downloaded ({first_words(error)}). "
            f"Leave --weights out to start from random ones, or put {file_name(config)} into a folder and name that: "
            "--weights-dir FOLDER."
        ) from error


def _pretrained(config: ModelSection, **overlay: Any) -> Weights:
    import segmentation_models_pytorch as smp

    state: Weights
    if config.encoder == OF_TORCHVISION:
        from torchvision.models import MobileNet_V3_Large_Weights

        state = MobileNet_V3_Large_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
        return state
    arch, options = "unet", overlay
    if config.arch in smp.MODEL_ARCHITECTURES_MAPPING:
        arch, options = config.arch, config.options | overlay
    if arch == "dpt":
        options = {"dynamic_img_size": True} | options
    name = True if config.encoder.startswith("tu-") else config.encoder_weights  # timm's are named by the encoder
    model: Any = smp.create_model(arch, config.encoder, encoder_weights=name, **options)
    state = model.encoder.state_dict()
    return state
