"""The settings of every stage in one Config, read from YAML and `--set key=value`, strict about names.

One file describes the whole pipeline: each command reads the sections that it needs. An unknown key is an
error that names the nearest valid one; the resolved settings are saved beside what they made.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo

from segray.errors import ConfigError, nearest
from segray.sections.labelling import ClusterSection, EvaluateSection, InferSection, LabelSection, ReportSection
from segray.sections.training import (
    RATE_KEYS,
    RATES,
    AugmentSection,
    DataSection,
    ModelSection,
    SweepSection,
    TrainSection,
)
from segray.sections.values import Located, Section

log = logging.getLogger("segray")
MAX_YAML_BYTES = 1 << 20  # a config is about a page; only YAML anchors that multiply would need more


class Config(Section):
    """The settings of every stage. All of them have defaults."""

    data: DataSection = Field(default_factory=DataSection)
    model: ModelSection = Field(default_factory=ModelSection)
    augment: AugmentSection = Field(default_factory=AugmentSection)
    train: TrainSection = Field(default_factory=TrainSection)
    sweep: SweepSection = Field(default_factory=SweepSection)
    infer: InferSection = Field(default_factory=InferSection)
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)
    label: LabelSection = Field(default_factory=LabelSection)
    report: ReportSection = Field(default_factory=ReportSection)
    cluster: ClusterSection = Field(default_factory=ClusterSection)

    def to_yaml(self, sections: Iterable[str] | None = None) -> str:
        """Write the resolved settings as YAML, from which `load` makes an equal Config."""
        return yaml.safe_dump(self.model_dump(mode="json", include=set(sections) if sections else None))

    def resolved(self) -> Config:
        """Return a copy in which the learning rate and weight decay are filled in with the optimizer's defaults."""
        return self.changed({"train.learning_rate": self.train.peak_rate, "train.weight_decay": self.train.decay})

    def absolute(self) -> Config:
        """Return a copy with absolute paths, which mean the same in every process, also among the values of a sweep."""
        changes: dict[str, Any] = {}
        for key, place in PLACES.items():
            section, field = key.split(".")
            changes[key] = _each(getattr(getattr(self, section), field), place.absolute)
        space = {
            key: _each(value, PLACES[key].absolute) if key in PLACES else value
            for key, value in self.sweep.space.items()
        }
        return self.changed({**changes, "sweep.space": space})

    def changed(self, updates: Mapping[str, Any]) -> Config:
        """Return a copy with dotted keys set: `config.changed({"train.epochs": 3})`."""
        data = self.model_dump(mode="json")
        for key, value in updates.items():
            _set(data, key, value)
        return validate(data, "settings")


def _each(value: Any, change: Callable[[str], str]) -> Any:
    """Change a text, or each text of a list; an empty text or any other value stays as it is."""
    if isinstance(value, list):
        return [_each(one, change) for one in value]
    return change(value) if isinstance(value, str) and value else value


def fields_of() -> dict[str, FieldInfo]:
    """List every setting by its dotted key."""
    sections = (
        (name, getattr(section.annotation, "model_fields", {})) for name, section in Config.model_fields.items()
    )
    return {f"{name}.{key}": field for name, fields in sections for key, field in fields.items()}


def within(field: FieldInfo) -> Iterator[Any]:
    """Yield a setting's type, and the types and annotations that it is made of."""
    parts = [field.annotation, *field.metadata]
    while parts:
        yield (part := parts.pop())
        parts += get_args(part)


# Settings that are paths, by dotted key.
PLACES = {key: mark for key, field in fields_of().items() for mark in within(field) if isinstance(mark, Located)}


def load(
    file: str | None = None, overrides: Mapping[str, Any] | None = None, recipe: Mapping[str, Any] | None = None
) -> Config:
    """Load the settings of a recipe by dotted key, then of a YAML file, then dotted overrides; later ones win.

    Given epochs override `train.max_steps` of an earlier source, and another optimizer drops the recipe's rates. Raises
    ConfigError that names file, key and rule.
    """
    data: dict[str, Any] = {}
    for key, value in (recipe or {}).items():
        _set(data, key, deepcopy(value))
    sections = _read_yaml(file) if file is not None else {}
    for section, values in sections.items():
        if isinstance(values, dict) and "epochs" in values and isinstance(data.get(section), dict):
            data[section].pop("max_steps", None)
        data[section] = data.get(section, {}) | values if isinstance(values, dict) else values
    if {"train.epochs", "train.max_steps"} <= {*(overrides or {})}:
        raise ConfigError("train.epochs and train.max_steps are both given; give one of them.")
    if "train.epochs" in (overrides or {}) and isinstance(data.get("train"), dict):
        data["train"].pop("max_steps", None)
    for key, value in (overrides or {}).items():
        _set(data, key, value)
    if recipe and isinstance(train := data.get("train"), dict) and isinstance(own := sections.get("train", {}), dict):
        given = {*(overrides or {}), *(f"train.{key}" for key in own)}
        _leave_rates(data, train, [key for key in RATE_KEYS if key in recipe and key not in given], recipe)
    return validate(data, file or "settings")


def _leave_rates(data: dict[str, Any], train: dict[str, Any], keys: list[str], recipe: Mapping[str, Any]) -> None:
    """Drop a recipe's rates from `train` if the optimizer has changed; raises ConfigError if it is varied alone."""
    own, now = recipe.get("train.optimizer"), train.get("optimizer")
    sweep = data.get("sweep")
    space = sweep.get("space") if isinstance(sweep, dict) else None
    if isinstance(space, dict) and "train.optimizer" in space and "train.weight_decay" in keys:
        if "train.weight_decay" not in space:
            raise ConfigError(
                f"train.optimizer is varied, and the recipe's train.weight_decay is for {own} alone. Give one for all, "
                "--set train.weight_decay=1e-2, or vary it too."
            )
    elif keys and own != now and now in RATES:
        usual = dict(zip(RATE_KEYS, RATES[now], strict=True))
        told = [f"{key} is {usual[key]:g}, not {train.pop(key.removeprefix('train.')):g}" for key in keys]
        log.warning(f"The recipe's rates are for {own}, and train.optimizer is {now}: {' and '.join(told)}.")


def parse(text: bytes, source: str) -> Config:
    """Parse the text of a YAML file, which may come from anywhere."""
    return validate(_sections(text, source), source)


def parse_override(text: str) -> tuple[str, Any]:
    """Parse 'train.epochs=3' to ("train.epochs", 3). The value is YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text}: give key=value, such as train.epochs=3.")
    return key.strip(), _safe_load(value, f"--set {text}")


def validate(data: Mapping[str, Any], source: str) -> Config:
    """Make a Config from plain data. Raises ConfigError with the first problem as one line."""
    try:
        return Config(**data)
    except ValidationError as error:
        raise ConfigError(_explain(error, source)) from None


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        child = data.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{key}: {parent} is a value, not a section.")
        data = child
    data[last] = value


def _explain(error: ValidationError, source: str) -> str:
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"] if "[" not in str(part)]  # pydantic adds its own: [key], list[…]
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        return f"{source}: unknown key {key}.{_nearest_key(path)}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{source}: {key} is {problem['input']!r}; {message[0].lower()}{message[1:]}."


# What other tools call a setting.
WORDS = {
    "data.root": "data dataset data_dir data_root root_dir dataroot",
    "data.size": "imgsz img_size image_size input_size resolution",
    "augment.crop": "crop_size patch_size",
    "model.arch": "architecture decoder",
    "model.encoder": "backbone encoder_name",
    "model.encoder_weights": "pretrained weights",
    "train.batch_size": "batch bs batchsize",
    "train.epochs": "epoch num_epochs max_epochs",
    "train.learning_rate": "lr lr0 rate",
    "train.max_steps": "steps iters iterations max_iters max_iterations",
    "train.out": "output output_dir out_dir save_dir work_dir workdir project",
    "train.precision": "amp fp16 bf16",
    "train.weight_decay": "wd decay",
    "cluster.gpu": "device gpu cuda",
    "cluster.workers": "gpus num_gpus num_workers world_size nproc",
    "label.inputs": "source inputs images video",
    "label.model": "weights checkpoint ckpt model_path",
    "evaluate.model": "weights checkpoint ckpt model_path",
    "label.every": "vid_stride frame_stride",
    "infer.threshold": "conf confidence",
}


def keys_like(word: str) -> list[str]:
    """Return the settings that are called `word` here or in other tools, else the one that is spelled most like it.

    >>> keys_like("lr"), keys_like("epochs"), keys_like("optimiser"), keys_like("xyz")
    (['train.learning_rate'], ['train.epochs'], ['train.optimizer'], [])
    """
    word = word.lower().replace("-", "_")
    keys = [key for key in fields_of() if key.rpartition(".")[2] == word]
    keys = keys or [key for key, words in WORDS.items() if word in words.split()]
    if not keys:
        last = {key.rpartition(".")[2]: key for key in reversed(fields_of())}
        keys = [last[name] for name in difflib.get_close_matches(word, last, 1, cutoff=0.75)]
    return keys


def _nearest_key(path: list[str]) -> str:
    """Suggest a key for an unknown one: in its section, else anywhere."""
    siblings: Any = Config
    for part in path[:-1]:
        siblings = siblings.model_fields[part].annotation
    near = difflib.get_close_matches(path[-1], siblings.model_fields, 1, cutoff=0.7)
    prefix = "".join(f"{part}." for part in path[:-1])
    found = [prefix + near[0]] if near else keys_like(path[-1])
    if found:
        return f" Did you mean {' or '.join(found[:3])}?"
    return nearest(path[-1], siblings.model_fields, most=1).replace("mean ", f"mean {prefix}", 1)


class _Loader(yaml.SafeLoader):
    """A SafeLoader that refuses a key given twice, where YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _safe_load(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: it builds plain data only
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}: not valid YAML{line}: {problem}.") from None


def _read_yaml(file: str) -> dict[str, Any]:
    from segray.core.io import storage  # importing it takes a while

    try:  # a local path may be a pipe, as in <(segray recipes NAME)
        with storage.open_read(file) if storage.in_bucket(file) else Path(file).expanduser().open("rb") as opened:
            text = opened.read(MAX_YAML_BYTES + 1)  # a device reports size 0, and may never end
        if len(text) > MAX_YAML_BYTES:
            raise ConfigError(f"{file} is larger than 1 MiB; a config is a page of YAML.")
        return _sections(text, file)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or error}.") from None


def _sections(text: bytes, file: str) -> dict[str, Any]:
    try:
        data = _safe_load(text.decode(), file)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} cannot be read: {error}.") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{file}: the file holds {type(data).__name__}; it must hold sections such as train:.")
    return data
