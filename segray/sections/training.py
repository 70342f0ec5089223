"""Sections for what is learned, and how: data, model, augment, train and sweep."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from segray.sections.values import (
    Epochs,
    ModelPlace,
    Place,
    Rgb,
    Section,
    Size,
    Unit,
    UriPlace,
    WeightsPlace,
    Words,
    check_divisors,
    check_objective,
    check_zoom,
    parse_auto,
    parse_batch,
    parse_loss,
    parse_mask_id,
    parse_names,
    parse_rates,
    parse_seconds,
)

Resize = Literal["stretch", "keep"]


class DataSection(Section):
    """Frames with ground truth, to train on and to score against."""

    format: Annotated[str | None, BeforeValidator(parse_auto)] = Field(
        None,
        description="Layout of the data folder; `segray data formats` lists them. Default, or auto: found by what lies "
        "in the folder.",
    )
    root: Place | None = Field(None, description="Folder of the frames and their ground truth.")
    size: Size | None = Field(
        None,
        description="Height x width that frames are resized to for the model. Default: the size of the first frame, or "
        "where frames keep their aspect ratios, the box around them at their median longer side.",
    )
    resize: Resize | None = Field(
        None,
        description="How frames are resized to `data.size`: stretch changes their aspect ratio, keep fits them into it "
        "and pads. Default: keep where the frames' aspect ratios differ, else stretch.",
    )
    train_split: str = Field("train", description="Split to train on.")
    val_split: str = Field("val", description="Split to validate on while training.")
    images: str | None = Field(
        None, description="Folder of the images below `data.root`, for the layout `folder`. Default: found by its name."
    )
    masks: str | None = Field(
        None, description="Folder of the masks below `data.root`, for the layout `folder`. Default: found by its name."
    )
    mask_suffix: str | None = Field(
        None,
        description="End of the masks' file names after those of their images, such as _mask, for the layout `folder`. "
        "Default: found.",
    )
    classes: str | None = Field(
        None,
        description="File of the classes below `data.root`, for the layout `folder`: a CSV of "
        "`name[,id][,r,g,b][,scored]`, a YAML file, or another tool's. Default: found by its name.",
    )
    unpaired: Literal["refuse", "drop"] = Field(
        "refuse", description="What to do with images that have no mask, and masks that have no image."
    )
    exclude: Annotated[list[str], BeforeValidator(parse_names)] = Field(
        default_factory=list,
        description="Patterns of frames to leave out, such as day3/*; they are matched with the frame's path below "
        "`data.root`, and `*` also stands for slashes.",
    )
    val_share: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="Share of the frames that is held out for validation where the layout has no splits.",
    )
    id_map: dict[Annotated[int, BeforeValidator(parse_mask_id), Words("id or colour")], int | str] = Field(
        default_factory=dict,
        description="Class of further ids or #RRGGBB colours in the masks, by its name or number; 255 makes them void.",
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
        None, description="Folder of pretrained weights, local or in a bucket, for machines without internet access."
    )
    mean: Rgb | None = Field(
        None,
        description="Mean of red, green and blue in 0..1, which is subtracted. Default: that of the encoder's weights.",
    )
    std: Annotated[Rgb, AfterValidator(check_divisors)] | None = Field(
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

    @property
    def has_encoder(self) -> bool:
        """Whether `encoder` says anything about the model."""
        return self.arch != "unet-plain"


class AugmentSection(Section):
    """Random changes to the frames of a training batch. Values are drawn uniformly from their ranges."""

    scale: Annotated[tuple[float, float], AfterValidator(check_zoom), Words("two numbers")] | None = Field(
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
AUTO_BATCH = 8  # the default, so that auto changes nothing where that fits
RATE_KEYS = ("train.learning_rate", "train.weight_decay")  # in the order of RATES

LossName = Literal["cross_entropy", "focal", "dice", "lovasz", "ohem"]


class TrainSection(Section):
    """One training run."""

    out: Place = Field("runs/train", description="Folder of the run, local or in a bucket.")
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
    batch_size: Annotated[
        int | Literal["auto"], BeforeValidator(parse_batch), Words("integer ≥ 1, or auto"), Unit("images")
    ] = Field(
        8,
        description="Images per step, over all workers together. auto begins with 8, or one for each worker, and where "
        "memory runs out halves it and doubles `train.accumulate`.",
    )
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
        dict[LossName, float], BeforeValidator(parse_loss), Words("loss, or mapping of losses to weights")
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
    teacher: ModelPlace | None = Field(
        None,
        description="Model bundle, or ready model of `segray models`, whose predictions are learned as soft targets, "
        "too (distillation).",
    )
    teacher_weight: float = Field(1.0, ge=0, description="Weight of the distillation loss.")
    teacher_temperature: float = Field(
        2.0, gt=0, description="Temperature that teacher and student are softened by in the distillation loss."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Precision of the computation. auto is bf16 on GPUs that have it and CPUs with AMX, fp16 on older "
        "GPUs, and fp32 on other CPUs.",
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
    def batch(self) -> int:
        """The given batch size, or the one that auto begins with."""
        return AUTO_BATCH if self.batch_size == "auto" else self.batch_size

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

    out: Place = Field("runs/sweep", description="Folder of the sweep, local or in a bucket.")
    search: Literal["grid", "random", "tpe"] = Field(
        "grid",
        description="How trials are chosen: grid tries every combination, random draws `sweep.trials` of them, and tpe "
        "chooses `sweep.trials` by the scores so far.",
    )
    space: dict[str, Any] = Field(
        default_factory=dict,
        description="Further settings to try, by key: a list of values, or a logarithmic range low..high.",
    )
    encoders: Annotated[list[str], BeforeValidator(parse_names)] = Field(
        default_factory=list, description="Encoders to try. Default: `model.encoder` alone."
    )
    learning_rates: Annotated[str | list[float], BeforeValidator(parse_rates)] = Field(
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
    time: Annotated[float, Field(gt=0), BeforeValidator(parse_seconds), Unit("seconds")] | None = Field(
        None,
        description="Start no further epoch after this time, such as 2h; the same command then resumes for as long "
        "again. Default: no limit.",
    )
    gpu_hours: Annotated[float, Unit("hours")] | None = Field(
        None, gt=0, description="Stop when all trials together took this many GPU hours. Default: no limit."
    )
    objective: Annotated[str, AfterValidator(check_objective)] = Field(
        "miou",
        description="Which model becomes best/: miou takes the highest mIoU, and pareto:0.9 the model that labels "
        "fastest among those of at least 0.9 times that mIoU.",
    )
    price: float | None = Field(
        None, gt=0, description="Price of this device per hour, for the cost of labelling a million frames."
    )
    against: list[ModelPlace] = Field(
        default_factory=list,
        description="Models to compare the trials with, by folder or name. They are not trained, but scored on the "
        "same frames at the same size, and measured as labellers.",
    )
    grace_epochs: Epochs = Field(1, ge=1, description="ASHA stops no trial before it has had this many epochs.")
    reduction_factor: int = Field(2, ge=2, description="ASHA lets the best 1/N of the trials continue at each rung.")
    concurrent: int | None = Field(
        None, ge=1, description="Trials that run at the same time. Default: as many as the cluster has room for."
    )
    trials_per_gpu: int = Field(1, ge=1, description="Trials that share a GPU.")
