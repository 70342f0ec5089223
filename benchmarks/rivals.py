"""One labelling run in one fresh process, timed: segray, and what it is held against. benchmarks.label starts them.

    script    what a user would write: a DataLoader with 2 workers, the smp model in eager fp32 as it was loaded,
              Pillow to decode, to resize and to write palette PNGs
    lightning the same loader and model, by Trainer.predict of a LightningModule
    pipeline  transformers' pipeline("image-segmentation") with its own Segformer-B0, as large as smp's and taught as
              long; for images and the segformer alone
    torchvision   its DeepLabV3 in the script's loop, as its references/segmentation evaluate it; for that model alone
    idiom     Ray Data as its documentation has it: read_binary_files, map (decode, resize), map_batches of an actor, of
              an encoder, write_parquet. Ray Data runs `map` inside the actor (it fuses the two); where it does not,
              decoding waits until the actor is up: a short run would else be decoded while the model is loaded, and
              what then follows would be no steady state
    model     segray's Predictor alone, called from as many threads as in segray: frames are prepared in memory, ids
              and figures come back, nothing is written. In turns with it `bare`: the same folded model's forward pass
              over a batch's tensor with all threads of PyTorch, and no more
    segray    segray.stages.label.label() on Ray with one actor

A run gives images_per_s of its steady state: from the first unit done (a batch, a shard) to the last but those that
were begun ahead, so that as much is in flight at both ends; and of the later half of that. Of what the process took
from its birth, start_s is what the frames at that speed do not account for: imports, Ray, the plan, the model, the
first decodes, the end.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

WORKERS = 2
BATCHES_A_TURN = 4
PALETTE = bytes(range(256)) * 3
Job = dict[str, Any]
Result = dict[str, Any]


def speed(job: Job, stamps: Sequence[tuple[float, int]], ahead: int) -> Result:
    """stamps: when a unit was done, and its frames, in order of time; `ahead`: units that were begun before."""
    end = max(1, len(stamps) - 1 - ahead)
    rate = sum(count for _, count in stamps[1 : end + 1]) / (stamps[end][0] - stamps[0][0])
    start_s = time.time() - job["born"] - job["frames"] / rate
    half = end // 2  # by then all of several processes are up
    late = sum(count for _, count in stamps[half + 1 : end + 1]) / (stamps[end][0] - stamps[half][0])
    window = stamps[half][0], stamps[end][0]
    return {"images_per_s": rate, "start_s": start_s, "late_images_per_s": late, "late_window": window}


# --- what a user would write -----------------------------------------------------------------------------


def span(video: str, first: int, last: int) -> Iterator[Any]:
    """Pillow images of the frames with these time stamps; `first` is a keyframe's."""
    import av

    with av.open(video) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        container.seek(first, stream=stream)
        for frame in container.decode(stream):
            if first <= frame.pts <= last:
                yield frame.to_image()
            if frame.pts >= last:
                return


def loader_of(job: Job) -> Any:
    """Batches, normalised, in order."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

    mean, std = (torch.tensor(job[key]).view(3, 1, 1) for key in ("mean", "std"))

    def seen(image: Image.Image) -> torch.Tensor:
        small = image.convert("RGB").resize(job["input_size"][::-1], Image.Resampling.BILINEAR)
        return (torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255 - mean) / std

    class Images(Dataset):
        def __len__(self) -> int:
            return len(job["files"])

        def __getitem__(self, i: int) -> torch.Tensor:
            return seen(Image.open(job["files"][i]))

    class Video(IterableDataset):
        def __iter__(self) -> Iterator[torch.Tensor]:
            for first, last in job["spans"][get_worker_info().id :: WORKERS]:
                yield from map(seen, span(job["files"][0], first, last))

    data = Video() if job["spans"] else Images()
    return DataLoader(data, job["batch"], num_workers=WORKERS, pin_memory=job["device"] == "cuda")


class Masks:
    """Where masks go, and when."""

    def __init__(self, job: Job) -> None:
        self.job, self.out, self.count, self.stamps = job, Path(job["out"]), 0, []
        self.out.mkdir()

    def put(self, masks: Sequence[np.ndarray]) -> None:
        from PIL import Image

        for mask in masks:
            image = Image.fromarray(mask)
            image.putpalette(PALETTE)
            image.save(self.out / f"{self.count:06}.png")
            self.count += 1
        self.stamps.append((time.time(), len(masks)))

    def put_logits(self, logits: Any) -> None:
        import torch
        from torch.nn.functional import interpolate

        wide = interpolate(logits, self.job["size"], mode="bilinear")
        self.put(wide.argmax(1).to(torch.uint8).cpu().numpy())

    def result(self, ahead: int) -> Result:
        assert self.count == self.job["frames"], self.count
        return speed(self.job, self.stamps, ahead)


def script(job: Job) -> Result:
    import segmentation_models_pytorch as smp

    return loop(job, smp.from_pretrained(job["model"]))


def torchvision(job: Job) -> Result:
    from safetensors.torch import load_file
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

    model = deeplabv3_mobilenet_v3_large(weights_backbone=None, num_classes=job["classes"], aux_loss=True)
    model.load_state_dict(load_file(f"{job['model']}/model.safetensors"))
    return loop(job, model, lambda output: output["out"])


def loop(job: Job, model: Any, logits_of: Callable[[Any], Any] = lambda output: output) -> Result:
    import torch

    model = model.eval().to(job["device"])
    loader, masks = loader_of(job), Masks(job)
    with torch.inference_mode():
        for batch in loader:
            masks.put_logits(logits_of(model(batch.to(job["device"]))))
    return masks.result(ahead=WORKERS * loader.prefetch_factor)


def lightning(job: Job) -> Result:
    import lightning as pl
    import segmentation_models_pytorch as smp

    loader, masks = loader_of(job), Masks(job)

    class Labels(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = smp.from_pretrained(job["model"]).eval()

        def predict_step(self, batch: Any, _: int) -> None:
            masks.put_logits(self.model(batch))

    kind = "gpu" if job["device"] == "cuda" else "cpu"
    trainer = pl.Trainer(accelerator=kind, devices=1, logger=False, enable_progress_bar=False)
    trainer.predict(Labels(), loader, return_predictions=False)
    return masks.result(ahead=WORKERS * loader.prefetch_factor)


def pipeline(job: Job) -> Result:
    from torch.utils.data import Dataset
    from transformers import pipeline

    class Files(Dataset):
        """Of which the pipeline gives its results one by one; of a list, all at the end."""

        def __len__(self) -> int:
            return len(job["files"])

        def __getitem__(self, i: int) -> str:
            return job["files"][i]

    masks, waiting = Masks(job), []
    pipe = pipeline("image-segmentation", job["hf"], device=job["device"], batch_size=job["batch"])
    labels = pipe.model.config.label2id
    for found in pipe(Files(), subtask="semantic", num_workers=WORKERS):
        mask = np.zeros(job["size"], np.uint8)
        for one in found:
            mask[np.asarray(one["mask"]) > 0] = labels[one["label"]]
        waiting.append(mask)
        if len(waiting) == job["batch"]:
            masks.put(waiting)
            waiting = []
    return masks.result(ahead=WORKERS * 2)


# --- Ray Data's documentation ----------------------------------------------------------------------------


class Model:
    def __init__(self, job: Job) -> None:
        import segmentation_models_pytorch as smp
        import torch

        torch.set_num_threads(job["cpus"])
        self.job, self.model = job, smp.from_pretrained(job["model"]).eval().to(job["device"])
        self.mean, self.std = (torch.tensor(job[key], device=job["device"]).view(3, 1, 1) for key in ("mean", "std"))
        Path(job["up"]).touch()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        import torch
        from torch.nn.functional import interpolate

        with torch.inference_mode():
            seen = torch.from_numpy(np.stack(list(batch["image"]))).to(self.job["device"]).permute(0, 3, 1, 2)
            logits = self.model((seen / 255 - self.mean) / self.std)
            masks = interpolate(logits, self.job["size"], mode="bilinear").argmax(1).to(torch.uint8)
        return {"path": batch["path"], "mask": masks.cpu().numpy(), "seen": [time.time()] * len(masks)}


def encode(batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
    from PIL import Image

    files = []
    for mask in batch["mask"]:
        image, file = Image.fromarray(mask), io.BytesIO()
        image.putpalette(PALETTE)
        image.save(file, "PNG")
        files.append(file.getvalue())
    return {"path": list(batch["path"]), "mask": files, "seen": batch["seen"], "at": [time.time()] * len(files)}


def idiom(job: Job) -> Result:
    import pyarrow.parquet as pq
    import ray.data
    from PIL import Image

    from segray.cluster import connect
    from segray.config import ClusterSection

    gpu, size, batch = job["device"] == "cuda", job["input_size"][::-1], job["batch"]

    def small(image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize(size, Image.Resampling.BILINEAR))

    def wait() -> None:
        until = time.time() + 60
        while not Path(job["up"]).exists() and time.time() < until:
            time.sleep(0.02)

    def decode_image(row: dict[str, Any]) -> dict[str, Any]:
        wait()
        return {"path": row["path"], "image": small(Image.open(io.BytesIO(row["bytes"])).convert("RGB"))}

    def decode_span(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        wait()
        for i, image in enumerate(span(job["files"][0], row["first"], row["last"])):
            yield {"path": f"{row['first']}+{i}", "image": small(image)}

    with connect.connected(ClusterSection()):
        ray.data.DataContext.get_current().enable_progress_bars = False
        if job["spans"]:
            rows = ray.data.from_items([{"first": a, "last": b} for a, b in job["spans"]]).flat_map(decode_span)
        else:
            rows = ray.data.read_binary_files(job["files"], include_paths=True).map(decode_image)
        connect.hush()
        # One CPU is the actor's, so that of two one is left for tasks; torch has the threads of all.
        actor = {"compute": ray.data.ActorPoolStrategy(size=1), "num_cpus": 1, "num_gpus": int(gpu)}
        masks = rows.map_batches(Model, fn_constructor_args=(job,), batch_size=batch, **actor)
        masks.map_batches(encode, batch_size=batch).write_parquet(job["out"])
        seen, at = (Counter(column.to_pylist()) for column in pq.read_table(job["out"], columns=["seen", "at"]))
    assert at.total() == job["frames"], at.total()
    # Masks may pile up before the encoder, which then is faster than the whole: from the first batch that the model saw
    # to the last that was encoded.
    return speed(job, [min(seen.items()), *sorted(at.items())[1:]], ahead=0)


# --- segray's own model, without anything around it ------------------------------------------------------


def model(job: Job) -> Result:
    import torch

    from segray.core.infer.predictor import Predictor, side_by_side
    from segray.core.io import images

    torch.set_num_threads(job["cpus"])
    predictor, size = Predictor(job["model"], job["device"]), tuple(job["size"])
    if job["spans"]:
        frames = [np.asarray(image) for image in span(job["files"][0], *job["spans"][0])][: job["batch"]]
    else:
        frames = [images.decode_image(Path(file).read_bytes()) for file in job["files"][: job["batch"]]]
    prepared = [predictor.prepare(frame) for frame in frames]
    tensor = predictor._normal(np.stack(prepared)).contiguous(memory_format=torch.channels_last)
    took: Counter[str] = Counter()

    def timed(name: str, work: Callable[[], Any]) -> Any:
        wait()
        started = time.perf_counter()
        result = work()
        wait()
        took[name] += time.perf_counter() - started
        return result

    def wait() -> None:
        if job["device"] == "cuda":
            torch.cuda.synchronize()

    def bare() -> torch.Tensor:
        with torch.autocast(predictor.device.type, predictor.dtype, enabled=predictor.dtype is not None):
            return predictor.model(tensor)

    callers = side_by_side(job["cpus"])
    turns = max(1, job["frames"] // len(frames) // callers // BATCHES_A_TURN)

    def predict(_: int) -> None:
        for _ in range(BATCHES_A_TURN):
            predictor.predict(prepared, [size] * len(prepared))

    with torch.inference_mode(), ThreadPoolExecutor(callers) as pool:
        for number in range(1 + turns):
            if number == 1:  # the one before was to warm up
                took.clear()
            timed("predict", lambda: list(pool.map(predict, range(callers))))
            timed("bare", bare)
            split(predictor, frames, size, timed)
    took["predict"] /= callers * BATCHES_A_TURN
    each_ms = {name: 1e3 * seconds / turns / len(frames) for name, seconds in took.items()}
    return {"images_per_s": 1e3 / each_ms.pop("predict"), "bare": 1e3 / each_ms.pop("bare"), "split_ms": each_ms}


def split(predictor: Any, frames: list[np.ndarray], size: tuple[int, int], timed: Callable[..., Any]) -> None:
    """What Predictor.predict does to a batch, step by step."""
    import torch

    from segray.core.infer.logit_maps import ids_of, metrics_of
    from segray.core.transforms import normalize, to_float

    info = predictor.info
    seen = timed("prepare", lambda: [predictor.prepare(frame) for frame in frames])
    there = timed("host → device", lambda: torch.from_numpy(np.stack(seen)).to(predictor.device))
    normal = timed("normalise", lambda: normalize(to_float(there), info.mean, info.std))
    logits = timed("forward", lambda: predictor._logits(normal)).contiguous()
    timed("figures", lambda: metrics_of(logits))
    ids = timed("class ids", lambda: [ids_of(one, size) for one in logits])
    timed("device → host", lambda: [one.cpu().numpy() for one in ids])


# --- segray ----------------------------------------------------------------------------------------------


def segray(job: Job) -> Result:
    from segray.cluster import connect
    from segray.config import Config
    from segray.core.infer.predictor import side_by_side
    from segray.stages import label as stage
    from segray.stages.label import Watch, label

    class Stamps(Watch):
        def __init__(self) -> None:
            self.receipts: list[tuple[float, int]] = []
            self.seconds: Counter[str] = Counter()

        def planned(self, rows: int) -> None:
            self.planned_at = time.time()

        def done(self, receipt: Any) -> None:
            self.receipts.append((time.time(), receipt.rows))
            self.seconds.update(receipt.seconds)

    given = {"model": job["model"], "inputs": job["inputs"], "out": job["out"], "shard_size": job["shard"]}
    given |= {"batch_size": job["batch"], "max_error_rate": 0.0, "actors": job.get("actors")}
    given |= {"actors_per_gpu": job.get("per_gpu", 1)}
    config = Config().changed({f"label.{key}": value for key, value in given.items()})
    config = config.changed({"cluster.gpu": job["device"] == "cuda"})
    if "simulated_ms" in job:
        from benchmarks import simulated

        os.environ[simulated.MS] = str(job["simulated_ms"])
        stage.Labeller = simulated.SimulatedLabeller
        stage.shards_at_once = lambda has, shape: side_by_side(has.cpus // shape.count) + stage.WAITING  # as on a GPU
    watch, imported = Stamps(), time.time()
    with connect.connected(config.cluster):
        connected = time.time()
        summary = label(config, watch=watch)
    assert summary["ok"] == job["frames"], summary["ok"]
    at_once = side_by_side(job["cpus"])
    result = speed(job, watch.receipts, ahead=at_once - 1)
    first, rows = watch.receipts[0]
    shard_s = at_once * rows / result["images_per_s"]  # so many take turns
    result["begin_s"] = {
        "Python, imports": imported - job["born"],
        "Ray": connected - imported,
        "plan": watch.planned_at - connected,
        "actor, its imports, model (less a shard's steady time)": first - watch.planned_at - shard_s,
        "first shard, at steady speed": shard_s,
    }
    result["stage_ms"] = {stage: 1e3 * seconds / job["frames"] for stage, seconds in watch.seconds.items()}
    return result


RIVALS = {
    "script": script,
    "lightning": lightning,
    "pipeline": pipeline,
    "torchvision": torchvision,
    "idiom": idiom,
    "model": model,
    "segray": segray,
}

if __name__ == "__main__":
    job = json.loads(sys.argv[2])
    Path(job["result"]).write_text(json.dumps(RIVALS[sys.argv[1]](job)))
