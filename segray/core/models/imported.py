"""A model of another program → a bundle: a state dict, a folder of smp or transformers, an ONNX file, or a name."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import torch

from segray.config import Config
from segray.core.data.class_files import read_classes
from segray.core.extras import extra
from segray.core.io import storage
from segray.core.models import build, bundle, name_of, onnx_model, pretrained, ready, weights
from segray.core.models.info import CONFIG, WEIGHTS, BundleInfo, read_info
from segray.core.models.places import kind_of, models_below, nearly
from segray.core.samples import COLOR, LabelSpace
from segray.core.transforms import IMAGENET_MEAN, IMAGENET_STD
from segray.errors import ConfigError, ModelError, OutputExists
from segray.sections.training import ModelSection
from segray.sections.values import HF, is_ready_model

STATES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
SAVED = (CONFIG, WEIGHTS, "pytorch_model.bin")  # files of a folder that save_pretrained wrote
LISTS = (".csv", ".yaml", ".yml", ".txt", ".json")  # suffixes of files that list classes
SHORT_SIDE_PX = 512  # of frames where no size is given
FREE_STRIDE_PX = 32  # of an ONNX file that takes any size: what most networks need, and none minds
NETWORK = {f"model.{key}" for key in ("arch", "encoder", "options", "one_logit", "batch_norm")}
FRAMES = {"data.size", "data.resize", "model.mean", "model.std"}
COUNTED = "num_batches_tracked"  # of batch norms: not in older files, and not used


class Imported(NamedTuple):
    """notes: what was decided or left out."""

    info: BundleInfo
    notes: list[str]


def import_model(
    file: str, out: str, config: Config, classes: str | None = None, *, overwrite: bool = False
) -> Imported:
    """Make a bundle at `out`. classes: their number, names with commas between, or a file that lists them.

    config: model.arch, encoder, options, one_logit, mean and std; data.size and data.resize of the frames.
    Raises ModelError that says what does not fit.
    """
    place = storage.absolute(out)
    if storage.exists(place) and not overwrite:
        raise OutputExists(f"{out} is there already. Give another --out, or --overwrite.")
    if next(storage.iter_files(place), None) and kind_of(place) != "bundle":
        raise OutputExists(f"{out} is no bundle, and --overwrite would delete what it holds. Give another --out.")
    if is_ready_model(file):
        _refuse_others(config, {"model.weights_dir"}, file)
        if classes is not None:
            raise ConfigError(f"{file} names its classes itself; leave --classes out.")
        bundle.copy_to(place, ready.bundle_of(file, config.model.weights_dir))
        return Imported(read_info(place), [])
    there = storage.absolute(file.removeprefix(HF))
    if not storage.exists(there):
        raise ModelError(f"{file} does not exist.{nearly(there)}")
    if storage.name_of(there) in SAVED and kind_of(above := storage.folder_of(there)):
        there = above  # which says what the file alone does not
    if kind_of(there) == "bundle":
        raise ModelError(f"{there} is a bundle already, which every command takes: segray label --model {quote(there)}")
    decided: list[str] = []
    space = None if classes is None else label_space(classes, decided)
    if there.endswith(".onnx"):
        model, info, notes = _of_onnx(there, config, space, file)
    elif there.endswith(STATES):
        model, info, notes = _of_state(there, config, space, file)
    elif kind_of(there) == "transformers":
        _refuse_others(config, set(), file)
        model, info = pretrained.read(there)
        notes = ["size, normalisation and classes are those of its files"]
        if info.model.one_logit:
            space = _with_background(space or info.space, notes)
        if space is not None:
            info.label_space = _as_many(space, info.space.num_classes).to_dict()
    elif storage.exists(storage.join(there, CONFIG)):
        _refuse_others(config, FRAMES, file)
        model, info, notes = _of_smp(there, config, space)
    elif there.endswith(".zip"):
        raise ModelError(f"{file} is a zip; unpack it, and give the folder or the file of weights in it.")
    else:
        found = models_below(there)
        raise ModelError(
            f"{file} is neither a file of weights ({', '.join(STATES)}), nor an ONNX file (.onnx), nor a folder that "
            f"save_pretrained wrote (config.json).{f' In it are {found}.' if found else ''}"
        )
    info.source = {"name": storage.name_of(there)}
    return Imported(bundle.save(place, model, info), decided + notes)


def label_space(classes: str, notes: list[str]) -> LabelSpace:
    """Make a label space of a number, names with commas between, or a file that lists classes."""
    if classes.lower().endswith(LISTS):
        space, told = read_classes(storage.absolute(classes))
        notes += told
        ids = [raw for raw, label in space.id_map.items() if raw < COLOR and label != space.ignore_index]
        if ids != sorted(ids):
            raise ConfigError(
                f"--classes {classes} has ids in another order than its lines, so the order of the model's outputs is "
                "not known. Write a line for each output, in their order."
            )
        return space
    if classes.strip().isdigit():
        return _numbered(int(classes))
    names = tuple(name.strip() for name in classes.split(","))
    if "" in names or len(set(names)) < len(names):
        raise ConfigError(f"--classes {classes}: every class needs a name of its own.")
    return pretrained.spaced(names)


def _numbered(count: int) -> LabelSpace:
    return pretrained.spaced((pretrained.FOREGROUND,) if count == 1 else tuple(f"class {i}" for i in range(count)))


def _with_background(space: LabelSpace, notes: list[str]) -> LabelSpace:
    """Put `background` before the class that a single output tells from it, unless both are named."""
    if space.num_classes == 1:
        space = pretrained.spaced((pretrained.BACKGROUND, *space.names), (None, *space.colors))
    notes.append(
        f"one output tells {space.names[-1]} from {space.names[0]}: a pixel is {space.names[-1]} where its logit is "
        "above 0"
    )
    return space


def _needed(space: LabelSpace | None, file: str) -> LabelSpace:
    if space is None:
        raise ConfigError(
            f"{file} does not name its classes: give their number, --classes 19, their names in order, --classes "
            "road,sky,car, or a file that lists them, --classes classes.csv."
        )
    return space


def _as_many(space: LabelSpace, count: int) -> LabelSpace:
    if space.num_classes != count:
        raise ConfigError(f"--classes names {space.num_classes} classes, and the model has {count}.")
    return space


def _refuse_others(config: Config, used: set[str], file: str) -> None:
    """Raise ConfigError for a setting of which this kind of model has no use."""
    given = {
        f"{section}.{key}" for section in config.model_fields_set for key in getattr(config, section).model_fields_set
    }
    if others := sorted(given - used):
        raise ConfigError(f"{', '.join(others)} would change nothing: {file} says itself what it is; leave it out.")


def _shape(config: Config, notes: list[str], size: tuple[int, int] | None = None, stride: int = 1) -> dict[str, Any]:
    """Return the fields of BundleInfo that say how frames are resized: the file's own size, or the given one."""
    given = size or config.data.size
    if given is not None:
        if size is not None and config.data.size not in (None, size):
            raise ConfigError(f"The file takes frames of {size[0]}×{size[1]} alone; leave --size out.")
        return {"input_size": given, "resize": config.data.resize or "stretch"}
    if config.data.resize is not None:
        raise ConfigError(f"data.resize {config.data.resize} needs the size of the frames as in training: --size HxW.")
    notes.append(
        f"frames are resized until their shorter side is {SHORT_SIDE_PX} px; --size HxW resizes them all to one size, "
        "as in training"
    )
    return {"input_size": (SHORT_SIDE_PX,) * 2, "resize": "short_side", "multiple_of": stride}


def _pixels(config: Config, notes: list[str], usual: tuple[Any, Any] = (IMAGENET_MEAN, IMAGENET_STD)) -> dict[str, Any]:
    weights.check_pixels(config.model)
    mean, std = config.model.mean or usual[0], config.model.std or usual[1]
    if None in (config.model.mean, config.model.std):
        notes.append(
            f"RGB in 0..1 is normalised by the mean {', '.join(map(str, mean))} and the deviation "
            f"{', '.join(map(str, std))}; --set model.mean=… and model.std=… give others"
        )
    return {"mean": mean, "std": std}


def _section(config: Config, **changes: Any) -> ModelSection:
    """Return the model's settings without what is of this machine or of the past."""
    plain = {"encoder_weights": "none", "weights_dir": None, "mean": None, "std": None}
    return config.model.model_copy(update=plain | changes)


def _of_state(
    there: str, config: Config, space: LabelSpace | None, file: str
) -> tuple[torch.nn.Module, BundleInfo, list[str]]:
    _refuse_others(config, NETWORK | FRAMES, file)
    _refuse_torchscript(there)
    notes: list[str] = []
    saved = weights.read_file(there)
    state, section = weights.state_of(saved, there), _section(config)
    weights.check_numbers(state, file)
    if isinstance(saved, dict) and (
        more := [k for k, one in saved.items() if weights.is_state(one) and one is not state]
    ):
        notes.append(f"{', '.join(map(str, more))} of the file is left out; save it alone to import it instead")
    _refuse_mmsegmentation(state, file)
    space = space or _named(saved, notes) or _needed(None, file)
    if section.one_logit or space.num_classes == 1 or _has_one_output(section, space.num_classes, state):
        section, space = section.model_copy(update={"one_logit": True}), _with_background(space, notes)
    model = build(section, space.num_classes)
    fit(model, state, f"{name_of(section)} with {space.num_classes} classes", notes)
    usual = weights.preprocessing(section.model_copy(update={"encoder_weights": "imagenet"}))
    info = BundleInfo(
        model=section, label_space=space.to_dict(), **_shape(config, notes), **_pixels(config, notes, usual)
    )
    return model, info, notes


def _named(saved: Any, notes: list[str]) -> LabelSpace | None:
    """Return the classes that mmsegmentation wrote into a checkpoint, with their colours; None where there are none."""
    meta = saved.get("meta") if isinstance(saved, dict) else None
    if not isinstance(meta, dict):
        return None
    both = [part for part in (meta, meta.get("dataset_meta")) if isinstance(part, dict)]
    about = {str(key).lower(): value for part in both for key, value in part.items()}
    names, palette = about.get("classes"), about.get("palette")
    if not isinstance(names, list | tuple) or not names:
        return None
    notes.append("classes are those that its meta names")
    if not isinstance(palette, list | tuple) or len(palette) != len(names) or not all(map(_is_rgb, palette)):
        palette = ()
    return pretrained.spaced(tuple(map(str, names)), [(red, green, blue) for red, green, blue in palette])


def _is_rgb(color: Any) -> bool:
    return isinstance(color, list | tuple) and len(color) == 3 and all(one in range(256) for one in color)


def _refuse_mmsegmentation(state: weights.Weights, file: str) -> None:
    parts = {part for key in state for part in key.split(".")[:3]}
    if {"backbone", "decode_head"} <= parts:
        raise ModelError(
            f"{file} is of a network of mmsegmentation's own (backbone, decode_head), which segray does not have. "
            "Export it to ONNX by mmdeploy and import that file; or name the same network on the Hub, hf:OWNER/NAME."
        )


def _has_one_output(section: ModelSection, classes: int, state: weights.Weights) -> bool:
    """Say whether the weights are of two classes that one logit tells apart."""
    if classes != 2:
        return False
    try:
        fit(build(section.model_copy(update={"one_logit": True}), 2), state, "", [])
    except ModelError:
        return False
    return True


def _refuse_torchscript(there: str) -> None:
    if storage.in_bucket(there) or not zipfile.is_zipfile(there):
        return
    with zipfile.ZipFile(there) as archive:
        if any("/code/" in name for name in archive.namelist()):
            raise ModelError(
                f"{there} is TorchScript: a program from elsewhere, which is not run. Give its state dict, "
                "torch.save(torch.jit.load(FILE).state_dict(), NEW), or export it to ONNX."
            )


def fit(model: torch.nn.Module, state: Mapping[str, torch.Tensor], what: str, notes: list[str]) -> None:
    """Load a state dict under the names of the model, whatever stands before them. ModelError if tensors do not fit."""
    mine = model.state_dict()
    prefix = _prefix(state, mine)
    given = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    missing = [key for key in mine if key not in given and not key.endswith(COUNTED)]
    more = [key for key in given if key not in mine]
    other = [key for key in mine if key in given and given[key].shape != mine[key].shape]
    if missing or other:
        parts = [f"of the model's {len(mine)} tensors {len(missing)} are not in the file{weights.such_as(missing)}"]
        if other:
            sizes = [f"{other[0]}: {_sides(given[other[0]])}, the model's {_sides(mine[other[0]])}"]
            parts.append(f"{len(other)} have another shape{weights.such_as(sizes)}")
        parts.append(f"{len(more)} of the file's {len(state)} are not the model's{weights.such_as(more)}")
        raise ModelError(
            f"The weights do not fit {what}: {'; '.join(parts)}. Give the --arch, --encoder, --classes and --set "
            "model.options.… that they were trained with; a network that `segray models` does not list comes as ONNX."
        )
    if prefix:
        notes.append(f"{prefix} before its names was left out")
    if rest := [*more, *(key for key in state if not key.startswith(prefix))]:
        left = f"{len(rest)} of the file's {len(state)} tensors are not the model's, and are left out"
        notes.append(f"{left}{weights.such_as(rest)}")
    model.load_state_dict({key: given.get(key, value) for key, value in mine.items()})


def _prefix(state: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    """Find what stands before the model's names: 'module.', 'model.', 'net.model.' or ''. ModelError for several."""
    found: Counter[str] = Counter()
    for key in state:
        parts = key.split(".")
        for cut in range(min(4, len(parts))):
            if ".".join(parts[cut:]) in mine:
                found["".join(f"{part}." for part in parts[:cut])] += 1
    whole = sum(not key.endswith(COUNTED) for key in mine)
    several = [prefix for prefix, count in found.items() if count >= whole]
    if len(several) > 1 and "" not in several:
        raise ModelError(
            f"The file holds the model several times: its names stand behind {', '.join(several)}. Save one of them "
            "alone, as of teacher and student, or of a model and its EMA."
        )
    return found.most_common(1)[0][0] if found else ""


def _sides(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"


def _of_smp(there: str, config: Config, space: LabelSpace | None) -> tuple[torch.nn.Module, BundleInfo, list[str]]:
    notes: list[str] = []
    described = json.loads(storage.read_bytes(storage.join(there, CONFIG)))
    if "_model_class" not in described:
        raise ModelError(f"{there}/{CONFIG} is neither smp's (_model_class) nor transformers' (architectures).")
    section, count = pretrained.smp_section(described)
    space = space or _numbered(count)
    if count == 1:
        section, space = section.model_copy(update={"one_logit": True}), _with_background(space, notes)
    space = _as_many(space, max(count, 2))
    model = build(section, space.num_classes)
    fit(model, weights.read(storage.join(there, WEIGHTS)), name_of(section), notes)
    usual = weights.preprocessing(section.model_copy(update={"encoder_weights": "imagenet"}))
    info = BundleInfo(
        model=section, label_space=space.to_dict(), **_shape(config, notes), **_pixels(config, notes, usual)
    )
    return model, info, notes


def _of_onnx(
    there: str, config: Config, space: LabelSpace | None, file: str
) -> tuple[torch.nn.Module, BundleInfo, list[str]]:
    extra("onnx")
    notes: list[str] = []
    data = storage.read_bytes(there)
    try:
        onnx_model.check_alone(data)
        session = onnx_model.session_of(data, torch.device("cpu"))
        own = onnx_model.segrays_facts(session)
        _refuse_others(config, FRAMES if own is None else set(), file)
        if own is not None:
            space = _as_many(space, own["label_space"].num_classes) if space else own["label_space"]
        elif (space := _needed(space, file)).num_classes == 1:
            space = _with_background(space, notes)
        facts = onnx_model.facts_of(session)
        shape = own["shape"] if own else _shape(config, notes, facts.size, FREE_STRIDE_PX)
        options = onnx_model.options_of(session, shape["input_size"], space.num_classes)
    except ModelError as error:
        raise ModelError(f"{there} is not used: {error}") from error
    notes.append(f"its output {options['output']} holds {options['kind']}")
    section = ModelSection(arch="onnx", encoder=Path(there).stem, options=options)
    pixels = own["pixels"] if own else _pixels(config, notes)
    if own:
        notes.append("size, normalisation and classes are those that segray export wrote into it")
    info = BundleInfo(model=section, label_space=space.to_dict(), **shape, **pixels)
    return onnx_model.OnnxModel(options, space.num_classes, data), info, notes
