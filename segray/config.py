"""Settings of every stage as pydantic models, read from YAML and `--set key=value`, strict about names.

One file describes a whole road: each command reads the sections that it needs. An unknown key is an
error that names the nearest valid one; the resolved settings are saved beside what they made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from segray.errors import ConfigError, nearest

TIME_UNITS = {"s": 1, "m": 60, "h": 3600}
MAX_YAML_BYTES = 1 << 20  # a config is a page; anchors that multiply would need room
READY_MODELS = ("deeplabv3-coco", "deeplabv3-resnet101-coco", "deeplabv3-mobilenet-coco")  # of core.models.ready
HUB = "smp-hub/"  # before the names of models that smp's authors published
WEIGHT_FILES = (".safetensors", ".pth", ".pt")


def parse_size(value: Any) -> Any:
    """'180x240' (height × width) → (180, 240)."""
    if isinstance(value, str):
        parts = value.lower().replace("×", "x").split("x")
        if len(parts) == 2 and all(part.strip().isdigit() for part in parts):
            return int(parts[0]), int(parts[1])
        raise ValueError("give height x width, such as 180x240")
    return value


def _mask_id(value: Any) -> Any:
    """'#800040' → the id of that colour, as core.samples.color_id."""
    return 1 << 24 | int(value[1:], 16) if isinstance(value, str) and value.startswith("#") else value


def _seconds(value: Any) -> Any:
    """'2h', '90m', '45s' → seconds."""
    if isinstance(value, str):
        number, unit = value[:-1].strip(), value[-1:]
        if unit not in TIME_UNITS or not number.replace(".", "", 1).isdigit():
            raise ValueError("give a number and s, m or h, such as 2h")
        return float(number) * TIME_UNITS[unit]
    return value


def _objective(value: str) -> str:
    kind, colon, share = value.partition(":")
    known = value == "miou" or (kind == "pareto" and colon and share.replace(".", "", 1).isdigit())
    if not known or (colon and not 0 < float(share) <= 1):
        raise ValueError("give miou, or pareto: and a share of the best mIoU, such as pareto:0.9")
    return value


def _one_loss(value: Any) -> Any:
    """'dice' → {'dice': 1.0}."""
    return {value: 1.0} if isinstance(value, str) else value


def is_ready_model(text: str) -> bool:
    """Whether this is a ready model's name and not a folder."""
    return text in READY_MODELS or text.startswith(HUB)


def _is_weights_name(text: str) -> bool:
    return not text.endswith(WEIGHT_FILES)


def _local(value: str) -> str:
    if "://" in value:
        raise ValueError("give a folder on the disks of the machines")
    return value


def _is_uri(text: str) -> bool:
    return ":" in text or text in ("databricks", "databricks-uc")  # as MLflow takes them


@dataclass(frozen=True)
class Located:
    """Marks a setting that is a path. words: what it holds, for people; is_name: whether a value is no path."""

    words: str
    is_name: Callable[[str], bool] = lambda text: False

    def absolute(self, text: str) -> str:
        """The path as it is called from every folder; a name stays."""
        from segray.core import storage  # half a second, for clients of S3

        return text if self.is_name(text) else storage.absolute(text)


Place = Annotated[str, Located("path")]
ModelPlace = Annotated[str, Located("path or name", is_ready_model)]
WeightsPlace = Annotated[str, Located("name or path", _is_weights_name)]
UriPlace = Annotated[str, Located("URI or path", _is_uri)]

Rgb = tuple[float, float, float]
Size = Annotated[
    tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]],
    BeforeValidator(parse_size),
    PlainSerializer(lambda size: f"{size[0]}x{size[1]}", when_used="json"),
]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, validate_default=True)


class DataSection(Section):
    """Labelled frames."""

    format: str | None = Field(None, description="layout of the folder, by its name in `segray data formats`")
    root: Place | None = Field(None, description="the folder")
    size: Size | None = Field(None, description="height x width that the model sees; default: the first frame's")
    train_split: str = "train"
    val_split: str = "val"
    images: str = Field("images", description="folder format: where images are, below root")
    masks: str = Field("masks", description="folder format: where masks are, below root")
    classes: str = Field("classes.csv", description="folder format: CSV of name[,id][,r,g,b][,scored], below root")
    val_share: float = Field(0.2, gt=0, lt=1, description="share for val where the layout has no splits")
    id_map: dict[Annotated[int, BeforeValidator(_mask_id)], int] = Field(
        default_factory=dict, description="id or #RRGGBB in mask files → class, or 255 for void"
    )
    mask_channel: Literal["red", "green", "blue"] | None = Field(
        None, description="channel of RGB masks that holds the class id, as SYNTHIA's and CARLA's red"
    )
    class_map: dict[str, str | None] = Field(
        default_factory=dict, description="class → new name; one name for several merges them, null makes void"
    )
    min_confidence: float = Field(0.0, ge=0, le=1, description="labels format: rows below it are dropped")
    min_pixel_confidence: float = Field(
        0.0, ge=0, le=1, description="labels format: pixels below it are void; needs label.confidence_maps"
    )


class ModelSection(Section):
    """An architecture of `segray models` over an encoder."""

    arch: str = "unet"
    encoder: str = "resnet18"
    encoder_weights: WeightsPlace = Field(
        "none",
        description="none, a name that smp knows such as imagenet, or a .safetensors or .pth file",
    )
    weights_dir: Place | None = Field(
        None, description="folder or s3:// of weight files, for machines without internet"
    )
    mean: Rgb | None = Field(None, description="of RGB in 0..1, which is subtracted; default: the encoder's weights'")
    std: Rgb | None = Field(None, description="of RGB in 0..1, which is divided by; default: the encoder's weights'")
    batch_norm: bool = Field(True, description="unet-plain: normalise between convolution and ReLU")
    one_logit: bool = Field(False, description="two classes from one logit a pixel; the other's is 0")
    options: dict[str, Any] = Field(default_factory=dict, description="more arguments of smp's decoder")


class AugmentSection(Section):
    """Random changes of a training batch; ranges are uniform."""

    scale: tuple[float, float] | None = Field(
        None,
        description="zoom; default: 1 for whole frames, for crops up to 2, and down to 0.5 where no void is seen",
    )
    crop: Size | None = Field(
        None,
        description="height x width that training sees; default: data.size, halved until it is at most 720x960 pixels",
    )
    max_class_share: float = Field(0.75, gt=0, le=1, description="a crop with more of one class is drawn anew")
    rotate_deg: float | None = Field(None, ge=0, le=180, description="± degrees; default: 0")
    flip: float = Field(0.5, ge=0, le=1, description="share flipped left to right")
    brightness: float | None = Field(None, ge=0, lt=1, description="± share of the whole range; default: 0")
    contrast: float | None = Field(None, ge=0, lt=1, description="± share; default: 0")
    saturation: float | None = Field(None, ge=0, lt=1, description="± share; default: 0")
    hue_deg: float = Field(0.0, ge=0, le=180, description="± degrees around the colour circle")
    blur: float = Field(0.0, ge=0, le=1, description="share blurred by a Gaussian of up to 1.5 pixels")
    mix: Literal["none", "cutmix", "classmix"] = Field("none", description="paste of another frame of the batch")
    mix_share: float = Field(0.5, ge=0, le=1, description="share of frames that get a paste")


RATES = {  # optimizer → peak learning rate and weight decay, where none are given
    "adamw": (1e-3, 1e-2),  # Loshchilov & Hutter 2019; torch's own
    "adam": (1e-3, 0.0),  # Kingma & Ba 2015; its decay, an L2 penalty scaled by the second moment, is another thing
    "sgd": (1e-2, 5e-4),  # mmsegmentation's schedules, as DeepLab's
}

LossName = Literal["cross_entropy", "focal", "dice", "lovasz", "ohem"]


class TrainSection(Section):
    """One training run."""

    out: Place = "runs/train"
    epochs: int = Field(10, ge=1)
    max_steps: int | None = Field(
        None, ge=1, description="batches in all, instead of epochs: the whole epochs that come nearest, one or more"
    )
    eval_every: int = Field(
        1, ge=1, description="epochs from one evaluation and checkpoint to the next; the last epoch always has both"
    )
    batch_size: int = Field(8, ge=1, description="images a step, over all workers")
    accumulate: int = Field(1, ge=1, description="steps whose gradients are averaged before the weights move")
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float | None = Field(
        None, gt=0, description="peak of the schedule; default: 1e-3 for adamw and adam, 1e-2 for sgd"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    weight_decay: float | None = Field(
        None, ge=0, description="of weights, not of norms and biases; default: 1e-2 for adamw, 0 for adam, 5e-4 for sgd"
    )
    schedule: Literal["poly", "cosine", "onecycle", "step", "constant"] = "poly"
    warmup: float = Field(0.05, ge=0, lt=1, description="share of all steps with a rising learning rate")
    poly_power: float = Field(0.9, ge=0, description="after warm-up: peak × (1 − progress)^power")
    milestones: list[float] = Field([0.6, 0.9], description="step schedule: shares of progress where ×0.1 comes")
    gradient_clip: float | None = Field(None, gt=0, description="largest norm of a step's gradient")
    loss: Annotated[dict[LossName, float], BeforeValidator(_one_loss)] = Field(
        {"cross_entropy": 1.0}, description="a loss, or a weight for each of several", min_length=1
    )
    class_weights: list[Annotated[float, Field(ge=0)]] | Literal["none", "median"] = Field(
        "none", description="of cross_entropy, focal and ohem; median: by median frequency balancing"
    )
    focal_gamma: float = Field(2.0, ge=0)
    ohem_threshold: float = Field(0.7, gt=0, le=1, description="pixels whose class has more probability are left out")
    ohem_min_share: float = Field(0.0625, ge=0, le=1, description="share of labelled pixels that ohem keeps at least")
    aux_weight: float = Field(0.4, ge=0, description="of the loss of each auxiliary output, where a model has them")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of averaged weights, which are then evaluated")
    patience: int | None = Field(None, ge=1, description="stop after so many epochs without a better mIoU")
    freeze_encoder: bool = Field(False, description="train the decoder alone; batch-norm statistics stand too")
    unfreeze_after: int | None = Field(None, ge=1, description="epochs after which a frozen encoder trains too")
    encoder_lr: float = Field(1.0, ge=0, description="the encoder's learning rate, as a multiple of the decoder's")
    teacher: Place | None = Field(None, description="a bundle whose soft labels are learned too")
    teacher_weight: float = Field(1.0, ge=0)
    teacher_temperature: float = Field(2.0, gt=0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where a GPU has it, or a CPU has AMX; else fp32"
    )
    compile: bool = Field(False, description="torch.compile the model")
    sync_batch_norm: bool | None = Field(None, description="default: on GPUs, where a worker has under 4 images a step")
    seed: int = 0
    max_failures: int = Field(2, ge=0, description="worker deaths to recover from")
    mlflow: UriPlace | None = Field(
        None, description="MLflow tracking URI that gets settings and epochs; needs the extra"
    )

    @property
    def peak_rate(self) -> float:
        """The learning rate that is given, else the optimizer's usual one."""
        return RATES[self.optimizer][0] if self.learning_rate is None else self.learning_rate

    @property
    def decay(self) -> float:
        """The weight decay that is given, else the optimizer's usual one."""
        return RATES[self.optimizer][1] if self.weight_decay is None else self.weight_decay


class SweepSection(Section):
    """Settings that are tried against each other, and what the best of them is."""

    out: Place = "runs/sweep"
    search: Literal["grid", "random", "tpe"] = Field(
        "grid", description="every combination; `trials` drawn by train.seed; or `trials` by TPE from the scores so far"
    )
    space: dict[str, Any] = Field(
        default_factory=dict, description="more settings to try: a list, or a range a..b, by dotted key"
    )
    encoders: list[str] = Field(default_factory=list, description="default: model.encoder alone")
    learning_rates: str | list[float] = Field(
        "1e-4..1e-2", description="a..b is drawn log-uniformly; a list is tried out whole"
    )
    trials: int = Field(4, ge=1, description="of a range, random or tpe; shared out over a grid's combinations")
    seeds: int = Field(1, ge=1, description="runs of each combination, by train.seed and those after it")
    time: Annotated[float, Field(gt=0), BeforeValidator(_seconds)] | None = Field(
        None, description="start no epoch after so long, such as 2h; the same command goes on for as long again"
    )
    gpu_hours: float | None = Field(None, gt=0, description="stop when all trials together took so many")
    objective: Annotated[str, AfterValidator(_objective)] = Field(
        "miou", description="best/ is the highest mIoU, or with pareto:0.9 the fastest labeller of 0.9 of it"
    )
    price: float | None = Field(None, gt=0, description="of an hour of this device, for the cost of a million frames")
    grace_epochs: int = Field(1, ge=1, description="ASHA: no trial stops before this epoch")
    reduction_factor: int = Field(2, ge=2, description="ASHA: at each rung the best 1/n go on")
    concurrent: int | None = Field(None, ge=1, description="trials at once; default: what the cluster holds")
    trials_per_gpu: int = Field(1, ge=1, description="trials that share a GPU, each with its part of it")


class LabelSection(Section):
    """Masks and figures for unlabelled frames."""

    model: ModelPlace | None = Field(None, description="a bundle: the folder best/ of a run, local or s3://")
    inputs: list[Place] = Field(
        default_factory=list, description="images, videos, folders and globs of them, lists, Parquet files of images"
    )
    truth: Place | None = Field(None, description="folder of masks at the images' paths, to score against")
    out: Place = "labels"
    every: int = Field(1, ge=1, description="of a video, every N-th frame")
    fps: float | None = Field(None, gt=0, description="of a video, so many frames a second, by their time stamps")
    limit: int | None = Field(None, ge=1, description="the first so many rows")
    sample: float | None = Field(None, gt=0, le=1, description="a share of the rows, the same ones every time")
    extend: bool = Field(False, description="also plan the inputs that the output does not have yet")
    retry_errors: bool = Field(False, description="try the inputs again that are errors in a finished output")
    shard_size: int | None = Field(
        None,
        ge=1,
        description="rows a part: what an interruption can cost; default 64, less of few images, more beyond 320,000",
    )
    batch_size: int = Field(8, ge=1)
    actors: int | None = Field(None, ge=1, description="default: one a GPU, or one on a machine without")
    max_error_rate: float = Field(1.0, ge=0, le=1, description="share of error rows that stops the run")
    mask_format: Literal["png", "rle", "none"] = Field("png", description="palette PNG, runs of ids, or figures alone")
    strict: bool = Field(False, description="refuse a store that overwrites what must be created once")
    confidence_maps: bool = Field(False, description="also write each pixel's confidence, as a grey PNG")

    def given_model(self) -> str:
        """The model, as it was named. ConfigError where none was."""
        if not self.model:
            raise ConfigError("label.model is not given; name the bundle: --model runs/train/best.")
        return self.model

    def check_given(self) -> None:
        """ConfigError when model or inputs are not given, or two settings contradict each other."""
        self.given_model()
        if not self.inputs:
            raise ConfigError("label.inputs is empty; name images, videos or folders: --input FOLDER.")
        if self.fps and self.every > 1:
            raise ConfigError(f"label.every is {self.every} and label.fps {self.fps:g}; give one of them.")


class GivenLabelSection(LabelSection):
    """What label works with: a model is named, and all places hold on every machine."""

    model: str


class InferSection(Section):
    """How a model is applied to a frame, by label and evaluate."""

    window: Size | None = Field(None, description="slide a window of this size over the frame at its own size")
    overlap: float = Field(0.33, ge=0, lt=1, description="of neighbouring windows, as a share of a side")
    scales: list[Annotated[float, Field(gt=0)]] = Field([1.0], min_length=1, description="sizes that are averaged")
    flip: bool = Field(False, description="average with the mirrored frame")
    threshold: float | None = Field(
        None, gt=0, lt=1, description="evaluate: a pixel whose best probability is not above it counts as missed"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="auto: bf16 on GPUs, else fp32")
    engine: Literal["torch", "onnx", "auto"] = Field(
        "torch",
        description="onnx: ONNX Runtime on a CPU (segray[export]); auto: for label the faster one, by a short probe",
    )


class EvaluateSection(Section):
    """Scores of a bundle, or of finished labels, on labelled frames at their own size."""

    model: ModelPlace | None = Field(None, description="a bundle, a ready model by name, or the --out of segray label")
    truth: Place | None = Field(
        None, description="of labels: folder of masks at the images' paths; default: data.root's, else as labelled"
    )
    split: str = "val"
    conditions: Place | None = Field(
        None, description="csv, jsonl or Parquet table, a row an image: scores for each value of its columns"
    )
    out: Place = "runs/evaluation"
    batch_size: int = Field(8, ge=1)
    pictures: int = Field(3, ge=0, description="frames shown of the best and of the worst")
    calibrate: bool = Field(
        False, description="fit the bundle's temperature on the split, which it was not trained on, and keep it there"
    )

    def given_model(self) -> str:
        """The model, as it was named. ConfigError where none was."""
        if not self.model:
            raise ConfigError(
                "evaluate.model is not given; name the bundle, a ready model of `segray models`, or labels."
            )
        return self.model


class ReportSection(Section):
    """One HTML page."""

    runs: list[Place] = Field(default_factory=list, description="folders of train, sweep, evaluate, compare or label")
    labels: list[Place] = Field(default_factory=list, description="more of them, which come after")
    out: Place = "report.html"


class ClusterSection(Section):
    """Where it runs."""

    address: str | None = Field(None, description="a Ray cluster; default: RAY_ADDRESS, else a Ray of our own")
    workers: int = Field(1, ge=0, description="training processes of a run; 0 trains in this process, without Ray")
    cpus_per_worker: int | None = Field(None, ge=1, description="default: the cluster's CPUs, shared out")
    gpu: bool | None = Field(None, description="a GPU for each process; default: where there is any GPU")
    wait: Annotated[float, Field(ge=0), BeforeValidator(_seconds)] = Field(
        0, description="how long nodes that an autoscaler starts are waited for, such as 20m"
    )
    object_store_gib: float | None = Field(
        None, ge=0.1, description="memory for objects, of a Ray of our own; default: Ray's, 30 % of what is free"
    )
    spill_dir: Annotated[Place, AfterValidator(_local)] | None = Field(
        None, description="where objects go that it does not hold; default: below RAY_TMPDIR"
    )
    cache_gib: float | None = Field(
        None, ge=0, description="disk of each node, below TMPDIR, for decoded frames; default: half of what is free"
    )


class Config(Section):
    """Every stage's settings; all have defaults."""

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
        """The resolved settings; `load` reads them back to an equal Config."""
        return yaml.safe_dump(self.model_dump(mode="json", include=set(sections) if sections else None))

    def resolved(self) -> Config:
        """A copy that says what the optimizer makes of a rate and a decay that are not given."""
        return self.changed({"train.learning_rate": self.train.peak_rate, "train.weight_decay": self.train.decay})

    def absolute(self) -> Config:
        """A copy whose paths are the same in every folder and process; those that a sweep tries, too."""
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
        """A copy with dotted keys set: `config.changed({"train.epochs": 3})`."""
        data = self.model_dump(mode="json")
        for key, value in updates.items():
            _set(data, key, value)
        return validate(data, "settings")


def _each(value: Any, change: Callable[[str], str]) -> Any:
    """A text, or each text of a list, changed; anything else as it is."""
    if isinstance(value, list):
        return [_each(one, change) for one in value]
    return change(value) if isinstance(value, str) else value


def _located() -> Iterator[tuple[str, Located]]:
    for name, section in Config.model_fields.items():
        fields: dict[str, Any] = getattr(section.annotation, "model_fields", {})
        for key, field in fields.items():
            marks = (mark for part in (*field.metadata, field.annotation) for mark in _within(part))
            yield from ((f"{name}.{key}", mark) for mark in marks if isinstance(mark, Located))


def _within(annotation: Any) -> Iterator[Any]:
    """A type, and the types and marks that it is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from _within(part)


PLACES = dict(_located())  # settings that are paths, by dotted key


def load(
    file: str | None = None, overrides: Mapping[str, Any] | None = None, recipe: Mapping[str, Any] | None = None
) -> Config:
    """Settings of a recipe (or none) by dotted key, then a YAML file, then dotted overrides.

    Whoever gives epochs means no steps that stand below. ConfigError says file, key, rule.
    """
    data: dict[str, Any] = {}
    for key, value in (recipe or {}).items():
        _set(data, key, deepcopy(value))
    for section, values in (_read_yaml(file) if file is not None else {}).items():
        if isinstance(values, dict) and "epochs" in values and isinstance(data.get(section), dict):
            data[section].pop("max_steps", None)
        data[section] = data.get(section, {}) | values if isinstance(values, dict) else values
    if {"train.epochs", "train.max_steps"} <= {*(overrides or {})}:
        raise ConfigError("train.epochs and train.max_steps are both given; give one of them.")
    if "train.epochs" in (overrides or {}) and isinstance(data.get("train"), dict):
        data["train"].pop("max_steps", None)
    for key, value in (overrides or {}).items():
        _set(data, key, value)
    return validate(data, file or "settings")


def parse(text: bytes, source: str) -> Config:
    """Settings from the text of a YAML file, wherever it was read."""
    return validate(_sections(text, source), source)


def parse_override(text: str) -> tuple[str, Any]:
    """'train.epochs=3' → ("train.epochs", 3); the value is YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text}: give key=value, such as train.epochs=3.")
    return key.strip(), _safe_load(value, f"--set {text}")


def validate(data: Mapping[str, Any], source: str) -> Config:
    """Plain data → Config; the first problem as one line."""
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
    path = [str(part) for part in problem["loc"] if "[" not in str(part)]  # pydantic's own: [key], list[…]
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        return f"{source}: unknown key {key}.{_nearest_key(path)}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{source}: {key} is {problem['input']!r}; {message[0].lower()}{message[1:]}."


def _nearest_key(path: list[str]) -> str:
    """The hint for an unknown key, among the keys that stand beside it."""
    siblings: Any = Config
    for part in path[:-1]:
        siblings = siblings.model_fields[part].annotation
    prefix = "".join(f"{part}." for part in path[:-1])
    return nearest(path[-1], siblings.model_fields, most=1).replace("mean ", f"mean {prefix}", 1)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where YAML silently keeps the last."""

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
    from segray.core import storage  # half a second, for clients of S3

    try:  # a local one may be a pipe, as of <(segray recipes NAME)
        with storage.open_read(file) if storage.is_s3(file) else Path(file).expanduser().open("rb") as opened:
            text = opened.read(MAX_YAML_BYTES + 1)  # a device says that it is empty, and may not end
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
