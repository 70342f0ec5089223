"""A model that transformers' save_pretrained wrote, in a folder or on the Hugging Face Hub → a bundle's parts.

config.json                 architecture and class names
preprocessor_config.json    size, resampling, normalisation (or image_processor in processor_config.json)
model.safetensors           weights, or model-….safetensors with an index
tokenizer.json, vocab.json, merges.txt     of OneFormer, which is told its task in words
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from segray.core.data import cityscapes
from segray.core.data.class_names import colored
from segray.core.extras import extra
from segray.core.io import storage
from segray.core.models import transformers_model, weights
from segray.core.models.info import CONFIG, BundleInfo
from segray.core.samples import IGNORE_INDEX, LabelSpace
from segray.errors import ModelError, SegrayError
from segray.sections.training import ModelSection
from segray.sections.values import HF, Rgb

PROCESSOR, WHOLE_PROCESSOR = "preprocessor_config.json", "processor_config.json"
FILES = ("*.json", "*.safetensors", "merges.txt")
PROCESSORS = (
    *("Segformer", "Beit", "DPT", "MobileViT", "MobileNetV2", "Mask2Former", "MaskFormer", "OneFormer", "Eomt"),
)  # fmt: skip
RESAMPLES = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
TASK, TASK_TOKENS = "the task is semantic", 77
BACKGROUND, FOREGROUND = "background", "foreground"  # what a single logit tells apart
MASK2FORMER_PX = (384, 384)  # what its post-processing interpolates every mask to

Setting = Callable[[str], Any]


def read(name: str, weights_dir: str | None = None) -> tuple[torch.nn.Module, BundleInfo]:
    """Load hf:OWNER/NAME[@REVISION], or a folder's path or URI. `weights_dir` holds it as the folder NAME.

    Raises ModelError that says what to fetch if it cannot be had, and what is wrong if it is not such a model.
    """
    extra("transformers", "hub")
    with _folder(name, weights_dir) as (folder, revision):
        try:
            return _read(folder, {"name": _title(name)} | ({"revision": revision} if revision else {}))
        except SegrayError as error:
            raise ModelError(f"{name} is not used: {error}") from error
        except Exception as error:  # each configuration may fail in ways of its own
            raise ModelError(f"{name} cannot be loaded by transformers: {weights.first_words(error)}.") from error


def _title(name: str) -> str:
    return name if name.startswith(HF) else storage.name_of(name)  # no path of this machine


@contextmanager
def _folder(name: str, weights_dir: str | None) -> Iterator[tuple[Path, str]]:
    """Yield a local folder of the model's files, and the commit that they are of, '' where there is none."""
    if name.startswith(HF) and weights_dir is None:
        yield _download(name)
        return
    repository = name.removeprefix(HF).partition("@")[0]
    place = (
        name
        if not name.startswith(HF)
        else storage.join(storage.absolute(str(weights_dir)), storage.name_of(repository))
    )
    if not storage.exists(storage.join(place, CONFIG)):
        raise ModelError(f"{place} holds no {CONFIG}. {_fetch(repository, weights_dir or 'FOLDER')}")
    if not storage.in_bucket(place):
        yield Path(place), ""
        return
    with tempfile.TemporaryDirectory(prefix="segray-") as there:
        for entry in storage.list_files(place, deep=False):
            file = storage.name_of(entry.uri)
            if any(Path(file).match(pattern) for pattern in FILES):
                (Path(there) / file).write_bytes(storage.read_bytes(entry.uri))
        yield Path(there), ""


def _download(name: str) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download

    repository, _, revision = name.removeprefix(HF).partition("@")
    try:
        with weights.quiet_hub():
            there = Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(FILES)))
    except Exception as error:  # the hub's client raises many kinds of errors: connection, cache, name
        raise ModelError(
            f"{name} could not be downloaded ({weights.first_words(error)}). {_fetch(repository, 'FOLDER')}"
        ) from error
    return there, there.name


def _fetch(repository: str, folder: str) -> str:
    return (
        f"Put its config.json, {PROCESSOR} and *.safetensors into {folder}/{storage.name_of(repository)}, and name "
        "FOLDER: --weights-dir FOLDER."
    )


def _read(folder: Path, source: dict[str, str]) -> tuple[torch.nn.Module, BundleInfo]:
    described = json.loads((folder / CONFIG).read_text())
    if not list(folder.glob("*.safetensors")):
        raise ModelError(
            "it has no .safetensors, and other weights are not unpickled. A revision may have them, such as "
            "@refs/pr/1 of the Hub's conversion; or load it in transformers and save_pretrained() it."
        )
    config = transformers_model.config_of(described)
    made = transformers_model.class_of(config)
    if made.__name__ not in (named := described.get("architectures") or [made.__name__]):
        raise ModelError(f"it is a {named[0]}, without the head of a {made.__name__}.")
    one_logit = [*config.id2label] == [0] and config.model_type not in transformers_model.UNIVERSAL
    space = _label_space({0: BACKGROUND, 1: config.id2label[0]} if one_logit else config.id2label)
    setting = _settings(folder, config.model_type)
    plain = {key: value for key, value in described.items() if key not in ("id2label", "label2id", "architectures")}
    options: dict[str, Any] = {"config": plain}
    if setting("do_flip_channel_order"):
        options["flip_channels"] = True
    scale = 255 * (setting("rescale_factor") or 1 / 255) if setting("do_rescale") else 255.0
    given = [setting("image_mean"), setting("image_std")] if setting("do_normalize") else [0.0, 1.0]
    mean, std = (_three(values, scale) for values in given)
    shape = _shape(setting, config)
    options |= _universal_options(config, setting, folder, (mean, std))
    model = transformers_model.TransformersModel(transformers_model.loaded(made, folder, config), options)
    info = BundleInfo(
        model=ModelSection(arch="hf", encoder=config.model_type, one_logit=one_logit, options=options),
        label_space=space.to_dict(),
        mean=mean,
        std=std,
        source=source,
        **shape,
    )
    return model, info


def _label_space(id2label: Mapping[int, str]) -> LabelSpace:
    if sorted(id2label) != list(range(len(id2label))):
        raise ModelError(
            f"id2label of {CONFIG} names the ids {', '.join(map(str, sorted(id2label)))}, and a model of "
            f"{len(id2label)} classes gives 0 to {len(id2label) - 1}; name each of these there."
        )
    names = tuple(str(id2label[i]) for i in range(len(id2label)))
    if len(names) > IGNORE_INDEX:
        raise ModelError(f"it has {len(names)} classes, and masks hold up to {IGNORE_INDEX}.")
    return spaced(names)


def spaced(names: tuple[str, ...], colors: Sequence[tuple[int, int, int] | None] = ()) -> LabelSpace:
    """Give classes their colours, unless they have some, and equal names a number; Cityscapes' know its ids as well."""
    if names == cityscapes.LABEL_SPACE.names:
        return cityscapes.LABEL_SPACE
    names = tuple(name if name not in names[:i] else f"{name} {i}" for i, name in enumerate(names))
    return LabelSpace(names, colored(names, colors))


def smp_section(described: Mapping[str, Any]) -> tuple[ModelSection, int]:
    """Return the settings and the number of classes of a config.json that smp's save_pretrained wrote."""
    options = {key: value for key, value in described.items() if value is not None and key[0] != "_"}
    classes, encoder = options.pop("classes"), options.pop("encoder_name")
    if (channels := options.get("in_channels", 3)) != 3:
        raise ModelError(
            f"smp's in_channels is {channels}, and a model takes RGB. Export it to ONNX behind a layer that makes its "
            "channels of red, green and blue."
        )
    # build() sets dynamic_img_size; an activation comes after the logits, and aux_params are of a classifier.
    for key in ("encoder_weights", "in_channels", "dynamic_img_size", "activation", "aux_params"):
        options.pop(key, None)
    return ModelSection(arch=described["_model_class"].lower(), encoder=encoder, options=options), classes


def _settings(folder: Path, kind: str) -> Setting:
    """Return the image processor's settings by name: the file's, else the defaults of its class in transformers."""
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    given: dict[str, Any] = {}
    if (folder / PROCESSOR).exists():
        given = json.loads((folder / PROCESSOR).read_text())
    elif (folder / WHOLE_PROCESSOR).exists():
        given = json.loads((folder / WHOLE_PROCESSOR).read_text()).get("image_processor") or {}
    if not given:
        raise ModelError(
            f"it has no {PROCESSOR}, which says how frames are resized and normalised; fetch it as well. One of your "
            "own training is written by AutoImageProcessor.from_pretrained(BASE).save_pretrained(FOLDER), BASE being "
            "the model that it began with."
        )
    usual = IMAGE_PROCESSOR_MAPPING_NAMES.get(kind, {}).get("torchvision", "")
    name = given.get("image_processor_type") or given.get("feature_extractor_type") or usual
    name = name.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if name.removesuffix("ImageProcessor") not in PROCESSORS:
        raise ModelError(f"its frames are prepared by {name}; those understood are {', '.join(PROCESSORS)}.")
    defaults = getattr(transformers, name)
    return lambda key: given.get(key, getattr(defaults, key, None))


def _three(values: float | list[float], scale: float) -> Rgb:
    red, green, blue = values if isinstance(values, list | tuple) else (values,) * 3
    return red / scale, green / scale, blue / scale


def _shape(setting: Setting, config: Any) -> dict[str, Any]:
    """Return the fields of BundleInfo that say how frames are resized.

    A crop of the centre is left out: it would leave out pixels that are to be labelled.
    """
    from transformers.image_processing_utils import get_size_dict

    multiple = setting("size_divisor") or 1
    if not setting("do_resize"):
        own = getattr(config, "image_size", None) or 512
        return {"input_size": own if isinstance(own, list | tuple) else (own, own), "resize": "none"}
    size = dict(
        get_size_dict(setting("size"), setting("max_size"), default_to_square=bool(setting("default_to_square")))
    )
    size = {key: value for key, value in size.items() if value}
    resample = setting("resample")
    if resample not in RESAMPLES:
        raise ModelError(f"its frames are resampled by Pillow's filter {resample}; those understood are {RESAMPLES}.")
    more: dict[str, Any] = {"resample": RESAMPLES[resample]}
    if "shortest_edge" in size:
        more |= {"longest_px": size.get("longest_edge"), "multiple_of": multiple}
        return {"input_size": (size["shortest_edge"],) * 2, "resize": "short_side"} | more
    if not size.keys() >= {"height", "width"}:
        raise ModelError(f"its frames have the size {size}; give height and width, or shortest_edge.")
    height, width = size["height"], size["width"]
    if setting("ensure_multiple_of") or setting("keep_aspect_ratio"):
        multiple = setting("ensure_multiple_of") or 1
        if setting("keep_aspect_ratio"):
            return {"input_size": (height, width), "resize": "nearest_side", "multiple_of": multiple} | more
        height, width = (round(side / multiple) * multiple for side in (height, width))
        return {"input_size": (height, width), "resize": "stretch"} | more
    height, width = (-(-side // multiple) * multiple for side in (height, width))
    return {"input_size": (height, width), "resize": "stretch"} | more


def _universal_options(config: Any, setting: Setting, folder: Path, pixels: tuple[Rgb, Rgb]) -> dict[str, Any]:
    """Return the options of TransformersModel that repeat what the processor of a universal model does."""
    if config.model_type == "mask2former":
        return {"masks_px": MASK2FORMER_PX}
    if config.model_type == "oneformer":
        from transformers import AutoTokenizer

        length = config.task_seq_len or TASK_TOKENS
        tokens = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)(
            [TASK], padding="max_length", max_length=length, truncation=True
        )
        mask, ids = tokens["attention_mask"][0], tokens["input_ids"][0]
        return {"task": [there * token for there, token in zip(mask, ids, strict=True)]}
    if config.model_type not in ("eomt", "eomt_dinov3"):
        return {}
    size = setting("size")
    size = {"shortest_edge": size} if isinstance(size, int) else size
    short, long = size["shortest_edge"], size.get("longest_edge") or size["shortest_edge"]
    options: dict[str, Any] = {"masks_px": (short, long)}
    if setting("do_split_image"):
        options["split_px"] = short
    elif setting("do_pad"):
        mean, std = pixels
        options |= {"pad_px": (short, long), "pad_value": [-m / s for m, s in zip(mean, std, strict=True)]}
    return options
