"""Sections for what a model is used for, and where: label, infer, evaluate, report and cluster."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from segray.errors import ConfigError
from segray.sections.values import Images, ModelPlace, Place, Rows, Section, Size, Unit, check_local, parse_seconds


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
    out: Place = Field("labels", description="Folder of the labels, local or in a bucket.")
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
        None,
        ge=1,
        description="Labelling processes at most: as many as have room, and more as nodes come. Default: "
        "`label.actors_per_gpu` for each GPU of the cluster, or one on each node without GPUs.",
    )
    actors_per_gpu: int = Field(
        1,
        ge=1,
        description="Labelling processes that share a GPU. Each reads, decodes and encodes for itself, on one Python "
        "interpreter, so several keep a fast GPU busier.",
    )
    input_timeout: Annotated[float, Field(gt=0), BeforeValidator(parse_seconds), Unit("seconds")] = Field(
        600,
        description="How long an input may make no progress, such as 10m, before its row is an error.",
    )
    max_error_rate: float = Field(
        1.0,
        ge=0,
        le=1,
        description="End with exit code 3 when a larger share of the rows are errors, and always when all are.",
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
        self.check_frames()

    def check_frames(self) -> None:
        """Raise ConfigError where frames of a video are chosen in two ways."""
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
        "auto",
        description="Precision of the computation. auto is bf16 on GPUs that have it, fp16 on older GPUs, and fp32 on "
        "CPUs.",
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
    out: Place = Field("runs/evaluation", description="Folder of the scores and pictures, local or in a bucket.")
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
    out: Place = Field("report.html", description="File of the page, local or in a bucket.")


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
    wait: Annotated[float, Field(ge=0), BeforeValidator(parse_seconds), Unit("seconds")] = Field(
        0, description="How long to wait for nodes that an autoscaler starts, such as 20m."
    )
    object_store_gib: Annotated[float, Unit("GiB")] | None = Field(
        None,
        ge=0.1,
        description="Memory of the object store, where segray starts Ray. Default: Ray's, 30 % of the free memory.",
    )
    spill_dir: Annotated[Place, AfterValidator(check_local)] | None = Field(
        None,
        description="Folder for objects that the object store has no room for, where segray starts Ray. Default: a "
        "folder below RAY_TMPDIR.",
    )
    cache_gib: Annotated[float, Unit("GiB")] | None = Field(
        None,
        ge=0,
        description="Disk space per node, below TMPDIR, for decoded training frames. Default: half of what is free.",
    )
