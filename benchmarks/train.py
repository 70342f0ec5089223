"""How fast training is, against what a user would write, Lightning, and Ray's documented example.

    python -m benchmarks.train --frames 96 --epochs 3 --rounds 3

Every contender runs in a process of its own, one after the other, in another order each round: the same Unet over
resnet18 from random weights, the same drawn frames, batch size, loss, optimizer, learning rate; frames are flipped at
random and not changed else. Speeds are of the epochs after the first, the passes over the training frames alone:
segray also scores those, and the validation frames after them.

    plain        a loop: a DataLoader with 2 workers, Pillow, the smp model in eager fp32 as it was built
    plain bf16   the same under torch.autocast
    lightning    the same DataLoader and model in a LightningModule, with a Trainer that logs nothing
    ray example  the same in Ray Train as its documentation has it: prepare_model, prepare_data_loader, a worker a core
    segray       `--workers 0`, without Ray; it trains in bf16 by itself where a CPU has AMX
    segray fp32  the same in fp32
    compiled     `--workers 0 --compile`: torch.compile, whose minutes are in the first epoch
    beside ray   `--workers 0` while a Ray stands idle on this machine: what its processes alone take
    segray 1, 2  under Ray Train with so many workers
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.measure import print_machine, rounds, spread, verdict
from segray.cli import main
from segray.cli.terminal import table

RATIOS = {  # of two contenders → the least that is aimed at
    ("segray", "plain"): 1.2,
    ("segray fp32", "plain"): None,
    ("compiled", "plain"): None,
    ("compiled", "segray"): None,
    ("segray", "plain bf16"): None,
    ("segray", "lightning"): None,
    ("segray 1", "segray"): 0.95,
    ("beside ray", "segray"): None,
    ("segray 2", "segray 1"): None,
    ("segray 2", "ray example"): None,
}
RATE, LOADERS = 1e-3, 2
Job = dict[str, Any]


@click.command()
@click.option("--frames", default=96, show_default=True)
@click.option("--size", default="240x320", show_default=True)
@click.option("--epochs", default=3, show_default=True)
@click.option("--batch", default=8, show_default=True)
@click.option("--rounds", "count", default=3, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--only", default="", help="Some of the contenders, with commas between.")
def train(frames: int, size: str, epochs: int, batch: int, count: int, device: str, only: str) -> None:
    """Images a second of training."""
    from segray.core.data import streets
    from segray.sections.values import parse_size

    print_machine()
    names = only.split(",") if only else list(CONTENDERS)
    with tempfile.TemporaryDirectory(prefix="segray-train-") as folder:
        root = streets.write(Path(folder) / "town", train=frames, val=8, size=parse_size(size), video_s=0)
        job = {"data": str(root), "size": parse_size(size), "epochs": epochs, "batch": batch, "device": device}
        results = rounds("benchmarks.train", names, job, count)
    rows = []
    for name in names:
        mine = [result[name] for result in results]
        speed, first, cpu, memory = (
            np.median([one[key] for one in mine]) for key in ("images_per_s", "first_s", "cpu_s", "most_mib")
        )
        waits = [one["wait_share"] for one in mine if one.get("wait_share") is not None]
        losses = " ".join(f"{loss:.2f}" for loss in mine[0]["losses"])
        wait = f"{np.median(waits):.1%}" if waits else "–"
        figures = (f"{speed:.2f}", wait, f"{first:.1f}", f"{cpu / frames / epochs:.2f}", f"{memory:.0f}", losses)
        rows.append((name, *figures))
    columns = ("", "images/s", "data wait", "first epoch after, s", "CPU s a frame, all in", "MiB", "loss by epoch")
    table(f"{frames} frames of {size}, batch {batch}, {epochs} epochs, {device}, {count} rounds", columns, rows)
    rows = []
    for a, b in [pair for pair in RATIOS if {*pair} <= {*names}]:
        ratios = [result[a]["images_per_s"] / result[b]["images_per_s"] for result in results]
        rows.append((f"{a} ÷ {b}", spread(ratios), verdict(ratios, RATIOS[a, b])))
    table("Ratios of one round (least–most)", ("", "", "target"), rows)


def speed(job: Job, ends: list[float], losses: list[float], wait_share: float | None = None) -> dict[str, Any]:
    """ends: when each epoch's pass over the training frames began and ended, in turns."""
    spans = list(zip(ends[::2], ends[1::2], strict=True))
    count = len(images_of(job))
    rates = [count / (end - begin) for begin, end in spans[1:]]
    return {
        "images_per_s": float(np.mean(rates)),
        "first_s": spans[0][1] - job["born"],
        "losses": losses,
        "wait_share": wait_share,
    }


# --- what a user would write -----------------------------------------------------------------------------


def images_of(job: Job) -> list[Path]:
    return sorted((Path(job["data"]) / "train").iterdir())


def frames_of(job: Job) -> Any:
    import torch
    from PIL import Image
    from torch.utils.data import Dataset

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    class Frames(Dataset):
        files = images_of(job)

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
            file = self.files[i]
            image = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1) / 255
            place = Path(job["data"]) / "trainannot" / f"{file.stem}.png"
            mask = torch.from_numpy(np.array(Image.open(place))).long()
            if torch.rand(()) < 0.5:
                image, mask = image.flip(-1), mask.flip(-1)
            return (image - mean) / std, mask

    return Frames()


def loader_of(job: Job, batch: int) -> Any:
    from torch.utils.data import DataLoader

    pin = job["device"] == "cuda"
    return DataLoader(
        frames_of(job), batch, shuffle=True, num_workers=LOADERS, persistent_workers=True, pin_memory=pin
    )  # fmt: skip


def parts() -> tuple[Any, Callable[..., Any]]:
    import segmentation_models_pytorch as smp
    import torch
    from torch.nn.functional import cross_entropy

    from segray.core.data.camvid import VOID_ID
    from segray.core.data.streets import LABEL_SPACE

    torch.manual_seed(0)
    model = smp.Unet("resnet18", encoder_weights=None, classes=LABEL_SPACE.num_classes)
    return model, lambda logits, masks: cross_entropy(logits, masks, ignore_index=VOID_ID)


def epochs_of(
    job: Job, model: Any, loader: Any, loss_of: Callable[..., Any], device: str, bf16: bool = False
) -> dict[str, Any]:
    """The loop itself."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.01)
    ends, losses = [], []
    for _ in range(job["epochs"]):
        model.train()
        total, seen, waited = 0.0, 0, 0.0
        ends.append(time.time())
        asked = time.perf_counter()
        for images, masks in loader:
            waited += time.perf_counter() - asked
            optimizer.zero_grad()
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
                loss = loss_of(model(images.to(device)), masks.to(device))
            loss.backward()
            optimizer.step()
            total, seen = total + loss.item() * len(images), seen + len(images)
            asked = time.perf_counter()
        ends.append(time.time())
        losses.append(total / seen)
    return speed(job, ends, losses, waited / (ends[-1] - ends[-2]))


def plain(job: Job, bf16: bool = False) -> dict[str, Any]:
    model, loss_of = parts()
    return epochs_of(job, model.to(job["device"]), loader_of(job, job["batch"]), loss_of, job["device"], bf16)


def lightning(job: Job) -> dict[str, Any]:
    import lightning as pl
    import torch

    net, loss_of = parts()
    ends: list[float] = []
    losses: list[float] = []

    class Segmenter(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.total = net, 0.0

        def training_step(self, batch: Any, _: int) -> Any:
            loss = loss_of(self.net(batch[0]), batch[1])
            self.total += float(loss) * len(batch[0])
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), RATE, weight_decay=0.01)

        def on_train_epoch_start(self) -> None:
            self.total = 0.0
            ends.append(time.time())

        def on_train_epoch_end(self) -> None:
            ends.append(time.time())
            losses.append(self.total / len(images_of(job)))

    trainer = pl.Trainer(
        accelerator="gpu" if job["device"] == "cuda" else "cpu", devices=1, max_epochs=job["epochs"], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Segmenter(), loader_of(job, job["batch"]))
    return speed(job, ends, losses)


def ray_example(job: Job) -> dict[str, Any]:
    import ray
    import ray.train.torch

    def loop(given: Job) -> dict[str, Any]:
        net, loss_of = parts()
        workers = ray.train.get_context().get_world_size()
        loader = ray.train.torch.prepare_data_loader(loader_of(given, given["batch"] // workers))
        return epochs_of(given, ray.train.torch.prepare_model(net), loader, loss_of, str(ray.train.torch.get_device()))

    ray.init("local", log_to_driver=False)
    gpu = job["device"] == "cuda"
    scaling = ray.train.ScalingConfig(num_workers=1 if gpu else job["cpus"], use_gpu=gpu)
    run_config = ray.train.RunConfig(storage_path=job["out"], name="ray")
    settings = {"train_loop_config": job, "scaling_config": scaling, "run_config": run_config}
    return ray.train.torch.TorchTrainer(loop, **settings).fit().return_value


# --- segray ----------------------------------------------------------------------------------------------


def segray_with(workers: int, **more: Any) -> Callable[[Job], dict[str, Any]]:
    def contender(job: Job) -> dict[str, Any]:
        from segray.config import Config
        from segray.stages.train import train

        config = Config().changed(
            {
                "data.format": "streets", "data.root": job["data"],
                "train.out": job["out"], "train.epochs": job["epochs"],
                "train.batch_size": job["batch"], "train.learning_rate": RATE, "train.schedule": "constant",
                "train.warmup": 0.0, "cluster.workers": workers, "cluster.gpu": job["device"] == "cuda",
                "augment.scale": [1.0, 1.0], "augment.rotate_deg": 0.0, "augment.max_class_share": 1.0,
                "augment.brightness": 0.0, "augment.contrast": 0.0, "augment.saturation": 0.0,
                **{f"train.{key}": value for key, value in more.items()},
            }
        )  # fmt: skip
        ends: list[float] = []
        history = train(config, on_row=lambda row: ends.append(time.time())).history
        later = history[1:]
        return {
            "images_per_s": float(np.mean([row["images_per_s"] for row in later])),
            "first_s": ends[0] - job["born"],
            "losses": [row["loss"] for row in history],
            "wait_share": float(np.mean([row["wait_share"] for row in later])),
        }

    return contender


def beside_ray(job: Job) -> dict[str, Any]:
    from segray.cluster import connect
    from segray.config import Config

    with connect.connected(Config().cluster):
        return segray_with(0)(job)


CONTENDERS: dict[str, Callable[[Job], dict[str, Any]]] = {
    "plain": plain,
    "plain bf16": partial(plain, bf16=True),
    "lightning": lightning,
    "ray example": ray_example,
    "segray": segray_with(0),
    "segray fp32": segray_with(0, precision="fp32"),
    "compiled": segray_with(0, compile=True),
    "beside ray": beside_ray,
    "segray 1": segray_with(1),
    "segray 2": segray_with(2),
}

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in CONTENDERS:
        told = json.loads(sys.argv[2])
        Path(told["result"]).write_text(json.dumps(CONTENDERS[sys.argv[1]](told)))
    else:
        main(train)
