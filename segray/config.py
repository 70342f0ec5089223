"""Settings of every stage as pydantic models, read from YAML and `--set key=value`, strict about names.

One file describes the whole pipeline: each command reads the sections that it needs. An unknown key is an
error that names the nearest valid one; the resolved settings are saved beside what they made.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError
from pydantic.fields import FieldInfo

from segray.errors import ConfigError, nearest

log = logging.getLogger("segray")

TIME_UNITS = {"s": 1, "m": 60, "h": 3600}
MAX_YAML_BYTES = 1 << 20  # a config is a page; anchors that multiply would need room
READY_MODELS = ("deeplabv3-coco", "deeplabv3-resnet101-coco", "deeplabv3-mobilenet-coco")  # of core.models.ready
HUB = "smp-hub/"  # before the names of models that smp's authors published
WEIGHT_FILES = (".safetensors", ".pth", ".pt")


def parse_size(value: Any) -> Any:
    """Parse '180x240' (height × width) to (180, 240)."""
    if isinstance(value, str):
        parts = value.lower().replace("×", "x").split("x")
        if len(parts) == 2 and all(part.strip().isdigit() for part in parts):
            return int(parts[0]), int(parts[1])
        raise ValueError("give height x width, such as 180x240")
    return value


def _mask_id(value: Any) -> Any:
    """Give the id of a colour such as '#800040', as core.samples.color_id does."""
    return 1 << 24 | int(value[1:], 16) if isinstance(value, str) and value.startswith("#") else value


def _seconds(value: Any) -> Any:
    """Parse '2h', '90m' or '45s' to seconds."""
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


def _rates(value: Any) -> Any:
    """Split '1e-3,1e-2' to ['1e-3', '1e-2'], and leave a range a..b as it is."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) and ".." not in value else value


def _one_loss(value: Any) -> Any:
    """Weigh a single loss: 'dice' becomes {'dice': 1.0}."""
    return {value: 1.0} if isinstance(value, str) else value


def _divisors(value: tuple[float, ...]) -> tuple[float, ...]:
    if min(value) <= 0:
        raise ValueError("give numbers above 0")
    return value


def _zoom(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1]:
        raise ValueError("give two numbers above 0, the smaller one first, such as [0.5, 2]")
    return value


def is_ready_model(text: str) -> bool:
    """Say whether this is a ready model's name and not a folder."""
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
    """Marks a setting that is a path.

    words: its type for people. is_name: whether a value is a name and no path.
    """

    words: str
    is_name: Callable[[str], bool] = lambda text: False

    def absolute(self, text: str) -> str:
        """Give the path that means the same in every folder; a name stays as it is."""
        from segray.core.io import storage  # half a second, for clients of S3

        return text if self.is_name(text) else storage.absolute(text)


class Words(str):
    """Marks a type with its words for people."""


class Unit(str):
    """Marks a setting with the unit of its number."""


Place = Annotated[str, Located("path")]
ModelPlace = Annotated[str, Located("path or name", is_ready_model)]
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


class DataSection(Section):
    """Frames with ground truth, to train on and to score against."""

    format: str | None = Field(
        None,
        description="Layout of the data folder; `segray data formats` lists them. Needed where `data.root` is given.",
    )
    root: Place | None = Field(None, description="Folder of the frames and their ground truth.")
    size: Size | None = Field(
        None,
        description="Height x width that frames are resized to for the model. Default: the size of the first frame.",
    )
    train_split: str = Field("train", description="Split to train on.")
    val_split: str = Field("val", description="Split to validate on while training.")
    images: str = Field("images", description="Folder of the images below `data.root`, for the layout `folder`.")
    masks: str = Field("masks", description="Folder of the masks below `data.root`, for the layout `folder`.")
    classes: str = Field(
        "classes.csv",
        description="CSV file of `name[,id][,r,g,b][,scored]` below `data.root`, for the layout `folder`.",
    )
    val_share: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="Share of the frames that is held out for validation where the layout has no splits.",
    )
    id_map: dict[Annotated[int, BeforeValidator(_mask_id), Words("id or colour")], int] = Field(
        default_factory=dict,
        description="Class of further ids or #RRGGBB colours in the masks; 255 makes them void.",
    )
    mask_channel: Literal["red", "green", "blue"] | None = Field(
        None, description="Channel of colour masks that holds the class id, such as red for SYNTHIA and CARLA."
    )
    class_map: dict[str, str | None] = Field(
        default_factory=dict,
        description="New names of classes. Classes with the same new name are merged; null makes a class void.",
    )
    min_confidence: float = Field(
        0.0, ge=0, le=1, description="Drop frames of lower mean confidence, for the layout `labels`."
    )
    min_pixel_confidence: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Make pixels of lower confidence void, for the layout `labels`. Needs `label.confidence_maps`.",
    )


class ModelSection(Section):
    """The network: an architecture of `segray models` with an encoder."""

    arch: str = Field("unet", description="Architecture; `segray models` lists them.")
    encoder: str = Field("resnet18", description="Encoder, such as mobilenet_v2; `segray models` lists them.")
    encoder_weights: WeightsPlace = Field(
        "none",
        description="Weights that the encoder starts from: none, the name of pretrained ones such as imagenet, or a "
        ".safetensors, .pth or .pt file.",
    )
    weights_dir: Place | None = Field(
        None, description="Folder of pretrained weights, local or on s3://, for machines without internet access."
    )
    mean: Rgb | None = Field(
        None,
        description="Mean of red, green and blue in 0..1, which is subtracted. Default: that of the encoder's weights.",
    )
    std: Annotated[Rgb, AfterValidator(_divisors)] | None = Field(
        None,
        description="Standard deviation of red, green and blue in 0..1, which is divided by. Default: that of the "
        "encoder's weights.",
    )
    batch_norm: bool = Field(
        True, description="Normalise batches between convolution and ReLU, in the architecture `unet-plain`."
    )
    one_logit: bool = Field(
        False, description="Predict two classes by one logit per pixel; the logit of the first class is then 0."
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="Further arguments of the architecture in segmentation-models-pytorch.",
    )


class AugmentSection(Section):
    """Random changes to the frames of a training batch. Values are drawn uniformly from their ranges."""

    scale: Annotated[tuple[float, float], AfterValidator(_zoom), Words("two numbers")] | None = Field(
        None,
        description="Range of the zoom. Default: 1 for whole frames; for crops up to 2, and down to 0.5 as far as the "
        "crop stays inside the frame.",
    )
    crop: Size | None = Field(
        None,
        description="Height x width of the crops to train on. Default: `data.size`, halved until it is at most "
        "720x960 pixels.",
    )
    max_class_share: float = Field(
        0.75, gt=0, le=1, description="Draw a crop again when one class fills more than this share of it."
    )
    rotate_deg: Annotated[float, Unit("degrees")] | None = Field(
        None, ge=0, le=180, description="Largest rotation to either side. Default: none."
    )
    flip: float = Field(0.5, ge=0, le=1, description="Share of the frames that is flipped left to right.")
    brightness: float | None = Field(
        None, ge=0, lt=1, description="Largest change of brightness, as a share of the whole range. Default: none."
    )
    contrast: float | None = Field(
        None, ge=0, lt=1, description="Largest change of contrast, as a share. Default: none."
    )
    saturation: float | None = Field(
        None, ge=0, lt=1, description="Largest change of saturation, as a share. Default: none."
    )
    hue_deg: Annotated[float, Unit("degrees")] = Field(
        0.0, ge=0, le=180, description="Largest change of hue to either side, on the colour circle."
    )
    blur: float = Field(
        0.0, ge=0, le=1, description="Share of the frames that is blurred, by a Gaussian of up to 1.5 pixels."
    )
    mix: Literal["none", "cutmix", "classmix"] = Field(
        "none",
        description="Paste from another frame of the batch: a rectangle (cutmix) or half of its classes (classmix).",
    )
    mix_share: float = Field(0.5, ge=0, le=1, description="Share of the frames that receive a paste.")


RATES = {  # optimizer → peak learning rate and weight decay, where none are given
    "adamw": (1e-3, 1e-2),  # Loshchilov & Hutter 2019; torch's own
    "adam": (1e-3, 0.0),  # Kingma & Ba 2015; its decay, an L2 penalty scaled by the second moment, is another thing
    "sgd": (1e-2, 5e-4),  # mmsegmentation's schedules, as DeepLab's
}
RATE_KEYS = ("train.learning_rate", "train.weight_decay")  # as RATES has them

LossName = Literal["cross_entropy", "focal", "dice", "lovasz", "ohem"]


class TrainSection(Section):
    """One training run."""

    out: Place = Field("runs/train", description="Folder of the run, local or on s3://.")
    epochs: Epochs = Field(10, ge=1, description="Passes over the training frames.")
    max_steps: Annotated[int, Unit("steps")] | None = Field(
        None,
        ge=1,
        description="Length of the run in steps, in place of `train.epochs`; it is rounded to whole epochs.",
    )
    eval_every: Epochs = Field(
        1,
        ge=1,
        description="Evaluate and write a checkpoint every N-th epoch; the last epoch always has both.",
    )
    batch_size: Images = Field(8, ge=1, description="Images per step, over all workers together.")
    accumulate: Annotated[int, Unit("steps")] = Field(
        1, ge=1, description="Steps whose gradients are accumulated before the weights are updated."
    )
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adamw", description="Optimizer that updates the weights.")
    learning_rate: float | None = Field(
        None, gt=0, description="Peak learning rate. Default: 1e-3 for adamw and adam, 1e-2 for sgd."
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd.")
    weight_decay: float | None = Field(
        None,
        ge=0,
        description="Decay of weights, except of norms and biases. Default: 1e-2 for adamw, 0 for adam, 5e-4 for sgd.",
    )
    schedule: Literal["poly", "cosine", "onecycle", "step", "constant"] = Field(
        "poly", description="How the learning rate changes after the warm-up."
    )
    warmup: float = Field(
        0.05, ge=0, lt=1, description="Share of all steps in which the learning rate rises to its peak."
    )
    poly_power: float = Field(
        0.9, ge=0, description="Power of the schedule poly: the rate is the peak × (1 − progress)^power."
    )
    milestones: list[float] = Field(
        [0.6, 0.9], description="Shares of the run after which the schedule step multiplies the rate by 0.1."
    )
    gradient_clip: float | None = Field(
        None,
        gt=0,
        description="Largest norm of a step's gradient; a larger gradient is scaled down. Default: no limit.",
    )
    loss: Annotated[
        dict[LossName, float], BeforeValidator(_one_loss), Words("loss, or mapping of losses to weights")
    ] = Field(
        {"cross_entropy": 1.0},
        description="Loss: cross_entropy, focal, dice, lovasz or ohem. A mapping such as {cross_entropy: 1, dice: 0.5} "
        "weighs several.",
        min_length=1,
    )
    class_weights: list[Annotated[float, Field(ge=0)]] | Literal["none", "median"] = Field(
        "none",
        description="Weights of the classes in cross_entropy, focal and ohem: a number each, or median for median "
        "frequency balancing.",
    )
    focal_gamma: float = Field(
        2.0, ge=0, description="Exponent of the focal loss: the larger, the less easy pixels count."
    )
    ohem_threshold: float = Field(
        0.7, gt=0, le=1, description="Leave pixels out of ohem whose true class has a higher probability."
    )
    ohem_min_share: float = Field(
        0.0625, ge=0, le=1, description="Smallest share of the annotated pixels that ohem keeps."
    )
    aux_weight: float = Field(
        0.4, ge=0, description="Weight of the loss of each auxiliary output, for architectures that have them."
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of the EMA of the weights, which is then evaluated and kept. Default: no EMA.",
    )
    patience: Epochs | None = Field(
        None, ge=1, description="Stop after this many epochs without a better mIoU. Default: never."
    )
    freeze_encoder: bool = Field(
        False, description="Train the decoder alone; the encoder's batch-norm statistics are kept, too."
    )
    unfreeze_after: Epochs | None = Field(
        None, ge=1, description="Train a frozen encoder, too, after this many epochs. Default: never."
    )
    encoder_lr: float = Field(1.0, ge=0, description="Learning rate of the encoder, as a multiple of the decoder's.")
    teacher: Place | None = Field(
        None, description="Model bundle whose predictions are learned as soft targets, too (distillation)."
    )
    teacher_weight: float = Field(1.0, ge=0, description="Weight of the distillation loss.")
    teacher_temperature: float = Field(
        2.0, gt=0, description="Temperature that teacher and student are softened by in the distillation loss."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Precision of the computation. auto is bf16 on GPUs that have it and CPUs with AMX, else fp32.",
    )
    compile: bool = Field(False, description="Compile the model with torch.compile.")
    sync_batch_norm: bool | None = Field(
        None,
        description="Share batch-norm statistics among the workers. Default: on GPUs, where a worker has fewer than 4 "
        "images per step.",
    )
    seed: int = Field(
        0, ge=0, lt=1 << 63, description="Seed of the initial weights, the order of the frames and the augmentation."
    )
    max_failures: int = Field(
        2, ge=0, description="How often a run whose workers died is restored from its checkpoint."
    )
    mlflow: UriPlace | None = Field(
        None, description="MLflow tracking URI to log settings and epochs to; needs `pip install 'segray[mlflow]'`."
    )

    @property
    def peak_rate(self) -> float:
        """The given learning rate, else the default of the optimizer."""
        return RATES[self.optimizer][0] if self.learning_rate is None else self.learning_rate

    @property
    def decay(self) -> float:
        """The given weight decay, else the default of the optimizer."""
        return RATES[self.optimizer][1] if self.weight_decay is None else self.weight_decay


class SweepSection(Section):
    """A search over settings, and how the best model of it is chosen."""

    out: Place = Field("runs/sweep", description="Folder of the sweep, local or on s3://.")
    search: Literal["grid", "random", "tpe"] = Field(
        "grid",
        description="How trials are chosen: grid tries every combination, random draws `sweep.trials` of them, and tpe "
        "chooses `sweep.trials` by the scores so far.",
    )
    space: dict[str, Any] = Field(
        default_factory=dict,
        description="Further settings to try, by key: a list of values, or a logarithmic range low..high.",
    )
    encoders: list[str] = Field(default_factory=list, description="Encoders to try. Default: `model.encoder` alone.")
    learning_rates: Annotated[str | list[float], BeforeValidator(_rates)] = Field(
        "1e-4..1e-2",
        description="Peak learning rates to try: a logarithmic range such as 1e-4..1e-2, or a list such as 1e-3,1e-2.",
    )
    trials: int = Field(
        4,
        ge=1,
        description="Trials in all: those of random and tpe, or those that a grid with a range shares out over its "
        "combinations.",
    )
    seeds: int = Field(
        1,
        ge=1,
        description="Runs of each combination, with `train.seed` and the seeds after it, for a mean and its spread.",
    )
    time: Annotated[float, Field(gt=0), BeforeValidator(_seconds), Unit("seconds")] | None = Field(
        None,
        description="Start no further epoch after this time, such as 2h; the same command then resumes for as long "
        "again. Default: no limit.",
    )
    gpu_hours: Annotated[float, Unit("hours")] | None = Field(
        None, gt=0, description="Stop when all trials together took this many GPU hours. Default: no limit."
    )
    objective: Annotated[str, AfterValidator(_objective)] = Field(
        "miou",
        description="Which model becomes best/: miou takes the highest mIoU, and pareto:0.9 the model that labels "
        "fastest among those of at least 0.9 times that mIoU.",
    )
    price: float | None = Field(
        None, gt=0, description="Price of this device per hour, for the cost of labelling a million frames."
    )
    grace_epochs: Epochs = Field(1, ge=1, description="ASHA stops no trial before it has had this many epochs.")
    reduction_factor: int = Field(2, ge=2, description="ASHA lets the best 1/N of the trials continue at each rung.")
    concurrent: int | None = Field(
        None, ge=1, description="Trials that run at the same time. Default: as many as the cluster has room for."
    )
    trials_per_gpu: int = Field(1, ge=1, description="Trials that share a GPU.")


class LabelSection(Section):
    """Labels for frames without ground truth: masks and their metrics."""

    model: ModelPlace | None = Field(
        None, description="Model bundle, such as the folder best/ of a run, or a ready model of `segray models`."
    )
    inputs: list[Place] = Field(
        default_factory=list,
        description="Images, videos and Parquet files of images to label; or folders, globs and lists of them.",
    )
    truth: Place | None = Field(
        None, description="Folder of ground-truth masks under the paths of the images, to score the labels against."
    )
    out: Place = Field("labels", description="Folder of the labels, local or on s3://.")
    every: Annotated[int, Unit("frames")] = Field(1, ge=1, description="Label every N-th frame of a video.")
    fps: Annotated[float, Unit("frames/s")] | None = Field(
        None,
        gt=0,
        description="Label this many frames per second of a video, by their time stamps. Default: every frame.",
    )
    limit: Rows | None = Field(None, ge=1, description="Label only the first N rows. Default: all.")
    sample: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Label only this share of the rows, such as 0.01; the sample is always the same. Default: all.",
    )
    extend: bool = Field(False, description="Also label inputs that the output does not have yet.")
    retry_errors: bool = Field(False, description="Retry the inputs that failed in a finished output.")
    shard_size: Rows | None = Field(
        None,
        ge=1,
        description="Rows per part, which is what an interruption can cost. Default: 64; fewer for few images, more "
        "beyond 320,000 files.",
    )
    batch_size: Images = Field(8, ge=1, description="Frames that the model takes at a time.")
    actors: int | None = Field(
        None, ge=1, description="Labelling processes. Default: one per GPU of the cluster, or one without GPUs."
    )
    max_error_rate: float = Field(
        1.0, ge=0, le=1, description="End with exit code 3 when a larger share of the rows are errors."
    )
    mask_format: Literal["png", "rle", "none"] = Field(
        "png", description="How masks are stored: palette PNG, run lengths (rle), or not at all (none: metrics alone)."
    )
    strict: bool = Field(
        False,
        description="Refuse a store that cannot create files exclusively: there, the later of two runs at once wins.",
    )
    confidence_maps: bool = Field(False, description="Also store the confidence of each pixel, as a grey PNG.")

    def given_model(self) -> str:
        """Give the model as it was named. Raises ConfigError where none was."""
        if not self.model:
            raise ConfigError("label.model is not given; name the bundle: --model runs/train/best.")
        return self.model

    def check_given(self) -> None:
        """Raise ConfigError where model or inputs are missing, or two settings contradict each other."""
        self.given_model()
        if not self.inputs:
            raise ConfigError("label.inputs is empty; name images, videos or folders: --input FOLDER.")
        if self.fps and self.every > 1:
            raise ConfigError(f"label.every is {self.every} and label.fps {self.fps:g}; give one of them.")


class GivenLabelSection(LabelSection):
    """The settings that labels are made with: a model is given, and all paths are absolute."""

    model: str


class InferSection(Section):
    """How a model is applied to frames, in `segray label`, `evaluate` and `show`."""

    window: Size | None = Field(
        None,
        description="Slide a window of this height x width over frames at their own size. Default: resize whole frames "
        "to the size that the model was trained with.",
    )
    overlap: float = Field(0.33, ge=0, lt=1, description="Overlap of neighbouring windows, as a share of their side.")
    scales: list[Annotated[float, Field(gt=0, le=16)]] = Field(
        [1.0], min_length=1, description="Scales of the frame whose predictions are averaged."
    )
    flip: bool = Field(False, description="Average the predictions of the frame and of its mirror image.")
    threshold: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Count a pixel as missed in `segray evaluate` when no class has a higher probability. Default: the "
        "likeliest class counts.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Precision of the computation. auto is bf16 on GPUs, else fp32."
    )
    engine: Literal["torch", "onnx", "auto"] = Field(
        "torch",
        description="What runs the model: torch, onnx (ONNX Runtime on CPUs, needs `pip install 'segray[export]'`), or "
        "auto, the faster of both in a short probe of `segray label`.",
    )


class EvaluateSection(Section):
    """Scores of a model, or of finished labels, against ground truth at the frames' own size."""

    model: ModelPlace | None = Field(
        None, description="Model bundle, ready model of `segray models`, or folder of labels to score."
    )
    truth: Place | None = Field(
        None,
        description="Folder of ground-truth masks under the paths of the images, to score labels against. Default: the "
        "split of `data.root`, or else the ground truth that was given to `segray label`.",
    )
    split: str = Field("val", description="Split to score.")
    conditions: Place | None = Field(
        None,
        description="Table (CSV, JSON Lines or Parquet) with a row per image; scores are also given for each value of "
        "its columns.",
    )
    out: Place = Field("runs/evaluation", description="Folder of the scores and pictures, local or on s3://.")
    batch_size: Images = Field(8, ge=1, description="Frames that the model takes at a time.")
    pictures: int = Field(3, ge=0, description="Pictures of the best and of the worst frames, each.")
    calibrate: bool = Field(
        False,
        description="Fit the temperature of the model on the split, which it must not have been trained on, and store "
        "it in the bundle.",
    )

    def given_model(self) -> str:
        """Give the model as it was named. Raises ConfigError where none was."""
        if not self.model:
            raise ConfigError(
                "evaluate.model is not given; name the bundle, a ready model of `segray models`, or labels."
            )
        return self.model


class ReportSection(Section):
    """The report: one HTML page."""

    runs: list[Place] = Field(
        default_factory=list,
        description="Folders that `segray train`, `sweep`, `evaluate`, `compare` or `label` wrote.",
    )
    labels: list[Place] = Field(default_factory=list, description="Further folders, which come after `report.runs`.")
    out: Place = Field("report.html", description="File of the page, local or on s3://.")


class ClusterSection(Section):
    """Where the work runs: in this process, in a Ray on this machine, or on a cluster."""

    address: str | None = Field(
        None, description="Address of a Ray cluster. Default: RAY_ADDRESS, or else a new Ray on this machine."
    )
    workers: int = Field(1, ge=0, description="Training processes of a run; 0 trains in this process, without Ray.")
    cpus_per_worker: int | None = Field(
        None, ge=1, description="CPUs of each training process. Default: an equal share of the cluster's CPUs."
    )
    gpu: bool | None = Field(None, description="Give each process a GPU. Default: true where the cluster has any GPU.")
    wait: Annotated[float, Field(ge=0), BeforeValidator(_seconds), Unit("seconds")] = Field(
        0, description="How long to wait for nodes that an autoscaler starts, such as 20m."
    )
    object_store_gib: Annotated[float, Unit("GiB")] | None = Field(
        None,
        ge=0.1,
        description="Memory of the object store, where segray starts Ray. Default: Ray's, 30 % of the free memory.",
    )
    spill_dir: Annotated[Place, AfterValidator(_local)] | None = Field(
        None,
        description="Folder for objects that the object store has no room for, where segray starts Ray. Default: a "
        "folder below RAY_TMPDIR.",
    )
    cache_gib: Annotated[float, Unit("GiB")] | None = Field(
        None,
        ge=0,
        description="Disk space per node, below TMPDIR, for decoded training frames. Default: half of what is free.",
    )


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
        """Copy with the learning rate and weight decay filled in that the optimizer uses by default."""
        return self.changed({"train.learning_rate": self.train.peak_rate, "train.weight_decay": self.train.decay})

    def absolute(self) -> Config:
        """Copy with absolute paths, which mean the same in every process; those that a sweep tries, too."""
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
        """Copy with dotted keys set: `config.changed({"train.epochs": 3})`."""
        data = self.model_dump(mode="json")
        for key, value in updates.items():
            _set(data, key, value)
        return validate(data, "settings")


def _each(value: Any, change: Callable[[str], str]) -> Any:
    """Change a text, or each text of a list; what is empty or anything else stays as it is."""
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
    """Yield a setting's type, and the types and marks that it is made of."""
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

    Given epochs override `train.max_steps` of what stands below, and another optimizer a recipe's rates. Raises
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
    """Take a recipe's rates out of `train` where the optimizer is another by now; ConfigError where it is varied."""
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
    """Make a Config of plain data. Raises ConfigError with the first problem as one line."""
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
    """Suggest a key for an unknown one, among those of its section."""
    siblings: Any = Config
    for part in path[:-1]:
        siblings = siblings.model_fields[part].annotation
    prefix = "".join(f"{part}." for part in path[:-1])
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
    from segray.core.io import storage  # half a second, for clients of S3

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
