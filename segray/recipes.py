"""Published settings by name, each for a kind of data and model; a file's settings and flags override them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from segray.errors import ConfigError, nearest

# PhotoMetricDistortion of mmsegmentation, which changes each of them in half of the frames: brightness by 32 of 255,
# hue by 18 of OpenCV's 180 steps around the colour circle.
COLORS = {
    "augment.brightness": 0.125,
    "augment.contrast": 0.5,
    "augment.saturation": 0.5,
    "augment.hue_deg": 36.0,
}
SGD = {  # DeepLab's optimizer, as in PaddleSeg and mmsegmentation
    "train.optimizer": "sgd",
    "train.learning_rate": 0.01,
    "train.momentum": 0.9,
    "train.weight_decay": 5e-4,
    "train.schedule": "poly",
    "train.poly_power": 0.9,
}
STEPS_80K = {  # mmsegmentation configs/_base_/schedules/schedule_80k.py
    "train.max_steps": 80_000,
    **SGD,
    "train.warmup": 0.0,
}
SEGFORMER = {  # the same optimizer for both of its data sets
    "model.arch": "segformer",
    "model.encoder": "mit_b0",
    "model.encoder_weights": "imagenet",
    "train.max_steps": 160_000,
    "train.optimizer": "adamw",
    "train.learning_rate": 6e-4,  # the head's rate: ten times the encoder's
    "train.encoder_lr": 0.1,
    "train.weight_decay": 0.01,
    "train.schedule": "poly",
    "train.poly_power": 1.0,
    "train.warmup": 1_500 / 160_000,
    "augment.scale": [0.5, 2.0],
    "augment.max_class_share": 0.75,
    "augment.rotate_deg": 0.0,
    **COLORS,
}


@dataclass(frozen=True)
class Recipe:
    """A recipe. about: what it is for. source: where its settings were published. settings: by dotted key."""

    about: str
    source: str
    settings: Mapping[str, Any]

    def to_yaml(self) -> str:
        """Write the recipe as a file for --config, with its purpose and source in comments above."""
        import yaml

        sections: dict[str, dict[str, Any]] = {}
        for key, value in self.settings.items():
            section, _, name = key.partition(".")
            sections.setdefault(section, {})[name] = value
        return f"# For {self.about}.\n# From {self.source}.\n{yaml.safe_dump(sections, sort_keys=False)}"


RECIPES = {
    "camvid-cnn": Recipe(
        "CamVid, or a few hundred frames of a drive, with a CNN",
        "PaddleSeg configs/pp_liteseg/pp_liteseg_stdc1_camvid_960x720_10k.yml; its net is PP-LiteSeg",
        {
            "model.arch": "deeplabv3plus",
            "model.encoder": "resnet34",
            "model.encoder_weights": "imagenet",
            "train.max_steps": 10_000,
            "train.batch_size": 24,
            **SGD,
            "train.warmup": 200 / 10_000,
            "train.loss": "ohem",
            "train.ohem_min_share": 1 / 16,
            "augment.scale": [0.5, 2.5],
            "augment.max_class_share": 1.0,
            "augment.rotate_deg": 0.0,
            "augment.brightness": 0.125,
            "augment.contrast": 0.5,
            "augment.saturation": 0.5,
        },
    ),
    "cityscapes-cnn": Recipe(
        "Cityscapes, or frames of 1024×2048, with DeepLabV3+",
        "mmsegmentation configs/deeplabv3plus/deeplabv3plus_r50-d8_4xb2-80k_cityscapes-512x1024.py",
        {
            "data.size": "1024x2048",
            "model.arch": "deeplabv3plus",
            "model.encoder": "resnet50",
            "model.encoder_weights": "imagenet",
            "train.batch_size": 8,
            "augment.crop": "512x1024",
            "augment.scale": [0.5, 2.0],
            "augment.max_class_share": 0.75,
            "augment.rotate_deg": 0.0,
            **COLORS,
            **STEPS_80K,
        },
    ),
    "cityscapes-transformer": Recipe(
        "Cityscapes, or frames of 1024×2048, with SegFormer",
        "mmsegmentation configs/segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py (Xie et al. 2021)",
        {
            **SEGFORMER,
            "data.size": "1024x2048",
            "train.batch_size": 8,
            "augment.crop": "1024x1024",
            "infer.window": "1024x1024",
            "infer.overlap": 0.25,
        },
    ),
    "ade20k": Recipe(
        "ADE20K, or photographs of many classes, with SegFormer",
        "mmsegmentation configs/segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py (Xie et al. 2021)",
        {
            **SEGFORMER,
            "data.size": "512x683",  # the short side there, at 4:3; upright frames come out smaller than there
            "data.resize": "keep",
            "train.batch_size": 16,
            "augment.crop": "512x512",
        },
    ),
    "small-data": Recipe(
        "tens or hundreds of frames, without pretraining",
        "jobs/camvid_best.yaml of this repository; `python -m benchmarks.recipe` takes it apart",
        {
            "model.arch": "unetplusplus",
            "model.encoder": "resnet34",
            "train.max_steps": 13_200,  # 600 epochs of CamVid's 367 frames
            "train.batch_size": 16,
            "train.optimizer": "adamw",
            "train.learning_rate": 1e-3,
            "train.weight_decay": 0.05,
            "train.schedule": "cosine",
            "train.gradient_clip": 1.0,
            "train.loss": {"cross_entropy": 1.0, "lovasz": 0.5},
            "train.class_weights": "median",
            "train.ema": 0.999,
            "augment.scale": [0.5, 2.0],
            "augment.rotate_deg": 10.0,
            "augment.max_class_share": 0.75,
            "augment.brightness": 0.125,
            "augment.contrast": 0.4,
            "augment.saturation": 0.4,
            "augment.hue_deg": 10.0,
            "augment.mix": "classmix",
            "augment.mix_share": 0.25,
            "infer.scales": [0.75, 1.0, 1.25],
            "infer.flip": True,
        },
    ),
}


def named(name: str) -> Recipe:
    """Find a recipe. Raises ConfigError with the nearest names for an unknown one."""
    if name not in RECIPES:
        raise ConfigError(f"--recipe {name}: there is no such recipe.{nearest(name, RECIPES)}")
    return RECIPES[name]
