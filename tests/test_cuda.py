"""What runs on a GPU: each test on the CPU as well, so that its lines are tried where no GPU is.

`pytest -m cuda tests/test_cuda.py -s` is the part on the GPU; what is printed are shares that a person may want to know.
"""

import copy
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from timm.layers.norm_act import convert_sync_batchnorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from segray.cluster import connect
from segray.cluster.labeller import Lost, Sickness
from segray.config import load
from segray.core.data import MemorySamples, streets
from segray.core.infer import cost
from segray.core.infer import predictor as predictor_module
from segray.core.infer.predictor import Predictor, is_of_device
from segray.core.labels import parts
from segray.core.labels.folder import LabelFolder
from segray.core.models import build, bundle, forward
from segray.core.models.info import BundleInfo
from segray.core.samples import Sample, TrainData
from segray.core.training import batches, checkpoint, loop, objective, optim, workers
from segray.core.training.workers import LocalWorker
from segray.errors import ModelError
from segray.sections.labelling import InferSection
from segray.sections.training import ModelSection
from segray.stages import train as train_stage
from segray.stages.evaluate import evaluate
from segray.stages.label import _plans, _pool, _receipts, _shape, with_bundle

SPACE, SIZE = streets.LABEL_SPACE, (32, 48)
PLAIN = {"model.arch": "unet-plain", "model.options": {"channels": 8}}
NARROW = {"model.encoder": "resnet18", "model.options": {"decoder_channels": [32, 16, 16, 8, 8]}}
cuda = pytest.mark.cuda
each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=cuda)])
each_device_slowly = pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.long), pytest.param("cuda", marks=cuda)]
)


def samples(count, first=0, size=SIZE):
    drawn = [streets.draw(first + i, size) for i in range(count)]
    return MemorySamples([Sample(image, SPACE.apply(mask, "")) for image, mask in drawn])


@pytest.fixture(scope="module")
def data():
    torch.set_num_threads(1)
    return TrainData(samples(8), samples(3, 100), SPACE, SIZE, train_ids=tuple("abcdefgh"))


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    return streets.write(tmp_path_factory.mktemp("town") / "streets", train=9, val=3, size=(48, 64), video_s=0)


@pytest.fixture
def settings(town, tmp_path):
    """A run of two epochs; keyword arguments are settings with __ for the dot."""

    def make(**more):
        (tmp_path / "run").mkdir(exist_ok=True)
        values = {
            "data.format": "streets", "data.root": str(town), "data.size": "32x48", "train.batch_size": 4,
            "train.epochs": 2, "train.out": str(tmp_path / "run"), "cluster.workers": 0, **PLAIN,
        }  # fmt: skip
        return load(None, values | {key.replace("__", "."): value for key, value in more.items()})

    return make


@pytest.fixture(scope="module")
def taught_bundle(tmp_path_factory):
    """A Unet that has seen a few steps of streets, so that few pixels are ties."""
    torch.manual_seed(0)
    section = load(None, NARROW).model
    info = BundleInfo(model=section, label_space=SPACE.to_dict(), input_size=(64, 96))
    model = build(section, SPACE.num_classes)
    drawn = samples(8, size=(64, 96)).samples
    images = torch.from_numpy(np.stack([one.image_hwc for one in drawn]))
    images = predictor_module.normalize(predictor_module.to_float(images), info.mean, info.std)
    masks = torch.from_numpy(np.stack([one.mask_hw for one in drawn])).long()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(8):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(forward(model, images), masks, ignore_index=255).backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("taught") / "best"
    bundle.save(folder, model.eval(), info)
    return str(folder)


def name_of(device):
    return torch.cuda.get_device_name().removeprefix("NVIDIA ") if device == "cuda" else "CPU worker"


# --- training --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "auto"), *(pytest.param("cuda", name, marks=cuda) for name in ("auto", "bf16", "fp16", "fp32"))],
)
def test_it_learns_in_every_precision_and_keeps_what_it_measured(settings, data, tmp_path, device, precision):
    config = settings(train__precision=precision, train__epochs=6, train__learning_rate=1e-2, train__ema=0.5)
    loop.fit(LocalWorker(device), config, data)
    history = checkpoint.read_history(str(tmp_path / "run"))
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    given = precision if precision != "auto" else "bf16" if device == "cuda" else None
    assert name_of(device) in history[0]["device"]
    assert given is None or history[0]["device"].endswith(f", {given}")
    scaler = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["scaler"]
    assert (precision == "fp16") == bool(scaler)
    loop.fit(LocalWorker(device), config.changed({"train.epochs": 7}), data)  # resumed, scaler and all
    assert [row["epoch"] for row in checkpoint.read_history(str(tmp_path / "run"))] == [1, 2, 3, 4, 5, 6, 7]


class Waits(TorchDispatchMode):
    """Raises where the host would wait for a device: at a number that is read, at places that are looked for."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.NAMES, func
        return func(*args, **(kwargs or {}))


@contextmanager
def nothing_waits(device):
    if device == "cpu":
        with Waits():
            yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("device", "loss", "optimizer"),
    [
        ("cpu", "cross_entropy", "sgd"),  # AdamW reads the numbers of its steps, which are on the CPU
        *(
            pytest.param("cuda", *names, marks=cuda)
            for names in [("cross_entropy", "adamw"), ("ohem", "sgd"), ("dice", "adamw"), ("lovasz", "adamw")]
        ),
    ],
)
def test_no_step_waits_for_the_device(settings, data, monkeypatch, device, loss, optimizer):
    """The batches are on the device already: threads that read wait for their own copies alone."""
    read = list(batches.read_batches(data.train, SIZE, [[0, 1, 2, 3]] * 3, torch.device(device)))

    def begun(*given):
        stepping.enter_context(nothing_waits(device))
        yield from read

    def ended(*given):
        stepping.close()
        return 1.0

    monkeypatch.setattr(loop, "read_batches", begun)
    monkeypatch.setattr(loop, "check_finite", ended)
    monkeypatch.setattr(loop, "epoch_batches", lambda *given: [[0, 1, 2, 3]] * 3)
    config = settings(
        train__loss=loss, train__optimizer=optimizer, train__gradient_clip=1.0, train__ema=0.9, train__epochs=1,
        augment__mix="classmix", augment__scale=[0.5, 2.0], augment__hue_deg=10, augment__blur=0.5, augment__crop="24x32",
    )  # fmt: skip
    worker = LocalWorker(device)
    workers.check_device(config.train, worker)
    model = build(config.model, 11).to(device).to(memory_format=torch.channels_last)
    scaler = torch.amp.GradScaler(device, enabled=False)
    average = optim.Average(model, 0.9) if device == "cuda" else None  # reads its number of steps, on the CPU as well
    goal = objective.make_objective(worker, config, data)
    learner = loop.Learner(model, optim.make_optimizer(model, config.train), scaler, goal, average)
    with ExitStack() as stepping:
        assert loop.train_epoch(worker, learner, config, data, 1)["loss"] == 1.0


@each_device
def test_batches_on_the_device_are_the_samples(data, device):
    steps = [[0, 3], [5, 1], [2, 2]]
    for step, (images, masks) in zip(
        steps, batches.read_batches(data.train, SIZE, steps, torch.device(device)), strict=True
    ):
        assert (images.device.type, masks.device.type) == (device, device)
        assert np.array_equal(images.cpu().numpy(), np.stack([data.train[i].image_hwc for i in step]))
        assert np.array_equal(masks.cpu().numpy(), np.stack([data.train[i].mask_hw for i in step]))


@contextmanager
def little_memory(device, mib, monkeypatch, fails):
    """Give the GPU's process only that many MiB more than it has; where there is none, `fails()` makes it so."""
    if device == "cpu":
        fails()
        yield
        return
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + mib * 2**20) / whole)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@each_device
def test_a_training_batch_that_does_not_fit_is_one_line(settings, data, monkeypatch, device):
    def full(model, images):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    config = settings(train__batch_size=8, augment__crop="32x48", model__options={"channels": 64})
    large = TrainData(samples(8, size=(256, 512)), data.val, SPACE, (256, 512))
    config, part = (config, data) if device == "cpu" else (config.changed({"augment.crop": "256x512"}), large)
    with (
        little_memory(device, 600, monkeypatch, lambda: monkeypatch.setattr(loop, "forward_all", full)),
        pytest.raises(ModelError) as error,
    ):
        loop.fit(LocalWorker(device), config, part)
    assert f" does not fit into the memory of {device} with 8 frames of " in str(error.value)
    assert "\n" not in str(error.value)


@each_device
def test_what_is_written_beside_training_is_a_copy_in_memory_of_the_host(data, settings, device):
    config = settings(train__ema=0.9)
    model = build(config.model, SPACE.num_classes).to(device).to(memory_format=torch.channels_last)
    parts = {"model": model, "optimizer": optim.make_optimizer(model, config.train), "ema": optim.Average(model, 0.9)}
    scaler = torch.amp.GradScaler(device, enabled=False)
    goal = objective.make_objective(LocalWorker(device), config, data)
    learner = loop.Learner(model, parts["optimizer"], scaler, goal, parts["ema"])
    loop.train_epoch(LocalWorker(device), learner, config, data, 1)
    wanted = {key: tensor.cpu().clone() for key, tensor in model.state_dict().items()}
    held = checkpoint.snapshot(parts)
    kept = checkpoint.with_weights(parts["ema"].module, held["ema"], "module.")
    averaged = {key: tensor.cpu().clone() for key, tensor in parts["ema"].module.state_dict().items()}
    loop.train_epoch(LocalWorker(device), learner, config, data, 2)
    for state, before in ((held["model"], wanted), (kept.state_dict(), averaged)):
        assert all(torch.equal(state[key], tensor) for key, tensor in before.items())
    tensors = [*held["model"].values(), held["optimizer"]["state"][0]["exp_avg"]]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}
    assert {tensor.is_pinned() for tensor in tensors if device == "cuda"} <= {True}


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=cuda)])  # minutes on a CPU
def test_a_compiled_model_trains(settings, data, tmp_path, device):
    started = time.perf_counter()
    loop.fit(LocalWorker(device), settings(train__compile=True, train__epochs=2), data)
    print(f"\ncompiled training of two epochs: {time.perf_counter() - started:.0f} s")
    assert len(checkpoint.read_history(str(tmp_path / "run"))) == 2


@each_device
def test_a_run_without_ray_says_that_it_is_on_the_device(settings, device):
    said = []
    result = train_stage.train(settings(cluster__gpu=device == "cuda"), on_start=said.append)
    assert name_of(device) in said[0]
    assert [name_of(device) in row["device"] for row in result.history] == [True, True]


@each_device
def test_scores_on_the_device_are_those_of_the_cpu(data, settings, device):
    config = settings(train__precision="fp32")
    torch.manual_seed(0)
    model = build(config.model, 11)
    found = []
    for name in ("cpu", device):
        worker = LocalWorker(name)
        there = copy.deepcopy(model).to(name).to(memory_format=torch.channels_last)
        found.append(loop.evaluate(worker, there, config, data, objective.make_objective(worker, config, data)))
    (wanted, wanted_loss), (given, given_loss) = found
    share = np.abs(wanted - given).sum() / 2 / wanted.sum()
    print(f"\n{device}, evaluated: {share:.4%} of the pixels counted otherwise than on the CPU")
    assert wanted.sum() == given.sum()
    assert share < 0.01
    assert given_loss == pytest.approx(wanted_loss, rel=1e-2)


@each_device
def test_the_evaluate_stage_runs_on_the_device(taught_bundle, town, tmp_path, device):
    given = {"data.format": "streets", "data.root": str(town), "evaluate.model": taught_bundle}
    given |= {"evaluate.out": str(tmp_path / "scores"), "cluster.gpu": device == "cuda", "evaluate.batch_size": 2}
    assert 0 < evaluate(load(None, given))["scores"]["pixel_accuracy"] <= 1


# --- several workers on one device -----------------------------------------------------------------------


class GlooWorker(LocalWorker):
    def __init__(self, device, rank, world_size):
        super().__init__(device)
        self.rank, self.world_size = rank, world_size

    def wrap(self, model):
        return DistributedDataParallel(model, static_graph=True)


def one_of_two(rank, device, store, out):
    """On a GPU two frames a worker are so few that norms see those of both."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    values = {"train.out": out, "train.epochs": 2, "train.batch_size": 4, "train.precision": "fp32", **NARROW}
    data = TrainData(samples(8), samples(3, 100), SPACE, SIZE)
    config, worker = load(None, values), GlooWorker(device, rank, 2)
    assert workers.sync_batch_norm(config.train, worker) == (device == "cuda")
    loop.fit(worker, config, data)
    dist.destroy_process_group()


@each_device_slowly
def test_two_workers_share_a_device_and_their_norms(tmp_path, device):
    (tmp_path / "run").mkdir()
    mp.spawn(one_of_two, (device, tmp_path / "store", str(tmp_path / "run")), nprocs=2)
    history = checkpoint.read_history(str(tmp_path / "run"))
    assert [row["epoch"] for row in history] == [1, 2]
    assert history[0]["device"].startswith("2 × " if device == "cuda" else "2 CPU workers")


@each_device
def test_norms_over_all_workers_keep_their_activations(device):
    torch.manual_seed(0)
    model = build(ModelSection(encoder="timm-efficientnet-b0", options=NARROW["model.options"]), 3).to(device)
    both = convert_sync_batchnorm(copy.deepcopy(model))
    image = torch.randn(2, 3, 64, 64, device=device)
    with torch.no_grad():
        torch.testing.assert_close(both.eval()(image), model.eval()(image), rtol=1e-3, atol=1e-3)


# --- labelling -------------------------------------------------------------------------------------------


def predict(predictor, frames):
    return predictor.predict([predictor.prepare(frame) for frame in frames], [frame.shape[:2] for frame in frames])


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "fp32"), *(pytest.param("cuda", name, marks=cuda) for name in ("fp32", "bf16", "fp16"))],
)
def test_labels_are_those_of_the_cpu_but_at_ties(taught_bundle, device, precision):
    """A tie: two classes are nearer to each other than the numbers of this precision, as a share of the logits' spread."""
    nearest = {"fp32": 1e-2, "bf16": 1e-1, "fp16": 2e-2}[precision]  # on GPUs fp32 may multiply in TF32
    frames = [streets.draw(seed, (96, 128)).image_hwc for seed in range(6)]
    own = Predictor(taught_bundle)
    wanted = np.stack([one.mask_hw for one in predict(own, frames)])
    there = Predictor(taught_bundle, device, InferSection(precision=precision))
    found = predict(there, frames)
    with torch.inference_mode():
        seen = own._normal(np.stack([own.prepare(frame) for frame in frames]))
        logits = torch.nn.functional.interpolate(forward(own.model, seen), (96, 128), mode="bilinear")
    first, second = logits.topk(2, dim=1).values.unbind(1)
    other = torch.from_numpy(np.stack([one.mask_hw for one in found]) != wanted)
    tie = first - second < nearest * (logits.max() - logits.min())
    print(
        f"\n{device} {precision}: {other.float().mean():.4%} of the labels are not the CPU's, ties {tie.float().mean():.2%}"
    )
    assert not (other & ~tie).any()
    for one, theirs in zip(found, predict(own, frames), strict=True):
        assert one[1:4] == pytest.approx(theirs[1:4], abs=0.02)


@each_device
@pytest.mark.parametrize("infer", [{"window": (48, 64)}, {"flip": True, "scales": [0.75, 1.0]}])
def test_windows_and_views_are_those_of_the_cpu(taught_bundle, device, infer):
    frames = [streets.draw(seed, (96, 128)).image_hwc for seed in range(2)]
    wanted, found = (
        predict(Predictor(taught_bundle, name, InferSection(precision="fp32", **infer), confidence_maps=True), frames)
        for name in ("cpu", device)
    )
    for one, other in zip(wanted, found, strict=True):
        assert (one.mask_hw != other.mask_hw).mean() < 0.02
        assert np.abs(one.confidence_hw.astype(int) - other.confidence_hw).mean() < 2


@each_device
def test_a_batch_that_does_not_fit_is_halved_and_labelled(taught_bundle, monkeypatch, device):
    frames = [streets.draw(seed % 4, (128, 192)).image_hwc for seed in range(32)]
    predictor = Predictor(taught_bundle, device)
    wanted = predict(predictor, frames[:4])
    if device == "cuda":  # as large as a street on a card: the batch of 32 takes some 10 GiB
        predictor.info.input_size = (512, 1024)
        wanted = predict(predictor, frames[:4])

    def small():
        forward_ = predictor._forward

        def at_most_three(batch):
            if len(batch) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return forward_(batch)

        monkeypatch.setattr(predictor, "_forward", at_most_three)
        monkeypatch.setattr(predictor_module, "CPU_PX", 1 << 40)

    with little_memory(device, 1536, monkeypatch, small):
        found = predict(predictor, frames)
    print(f"\n{device}: a batch of 32 became batches of {predictor.most_at_once}")
    assert 1 <= predictor.most_at_once < 32
    assert len(found) == 32
    for i, one in enumerate(found):
        assert (one.mask_hw != wanted[i % 4].mask_hw).mean() < 0.01


@each_device
def test_threads_that_share_a_predictor_get_their_own_labels(taught_bundle, device):
    """Batches are queued one after the other; nobody's masks are overwritten by the next one's."""
    frames = [[streets.draw(3 * group + i, (96, 128)).image_hwc for i in range(3)] for group in range(4)]
    predictor = Predictor(taught_bundle, device)
    wanted = [predict(predictor, group) for group in frames]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda group: predict(predictor, group), frames * 2))
    for one, other in zip(found, wanted * 2, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            assert (mine.mask_hw != theirs.mask_hw).mean() < 1e-3
            assert mine[1:4] == pytest.approx(theirs[1:4], abs=1e-3)


@each_device
def test_weights_and_frames_are_channels_last(taught_bundle, device):
    predictor = Predictor(taught_bundle, device)
    assert {weight.device.type for weight in predictor.model.parameters()} == {device}
    kernels = [weight for weight in predictor.model.parameters() if weight.ndim == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)
    seen = predictor._normal(np.zeros((2, 64, 96, 3), np.uint8))
    assert seen.is_contiguous(memory_format=torch.channels_last)
    assert seen.device.type == device


@each_device
def test_costs_are_measured_on_the_device(taught_bundle, settings, device):
    found = cost.labelling_cost(taught_bundle, device, 1)
    step_s = cost.training_step_s(settings(), 11, SIZE, device)
    print(f"\n{device}: {found}, a training step {1e3 * step_s:.1f} ms")
    assert found.images_per_s > 0
    assert step_s > 0


FAULT = """
import sys, torch
from segray.core.infer.predictor import is_of_device
try:
    values = torch.arange(4, device=sys.argv[1])[torch.tensor([9], device=sys.argv[1])]
    print(values.tolist())
except Exception as error:
    print(type(error).__name__, is_of_device(error))
"""


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=cuda)])
def test_a_fault_of_the_device_is_told_from_others(device):
    """In a process of its own, as a GPU's fault ends all use of it."""
    done = subprocess.run([sys.executable, "-c", FAULT, device], capture_output=True, text=True, check=False)
    assert done.stdout.split()[-1:] == [str(device == "cuda")], done.stdout + done.stderr[-2000:]
    assert is_of_device(torch.AcceleratorError("CUDA error: device-side assert triggered"))


# --- under Ray -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_ray():
    with connect.connected(load(None, {}).cluster) as has:
        yield has


@cuda
def test_a_worker_of_ray_has_the_device(settings, own_ray):
    result = train_stage.train(settings(cluster__workers=1, cluster__gpu=True, cluster__cpus_per_worker=1))
    assert [name_of("cuda") in row["device"] for row in result.history] == [True, True]


@each_device_slowly
def test_two_labelling_processes_share_a_device_by_halves(taught_bundle, town, tmp_path, own_ray, device):
    given = {"label.model": taught_bundle, "label.inputs": [str(town / "train")], "label.out": str(tmp_path / "labels")}
    given |= {"label.shard_size": 1, "cluster.gpu": device == "cuda", "label.actors_per_gpu": 2}
    config = load(None, given | {"label.actors": min(2, own_ray.cpus)}).absolute()
    section, watch = with_bundle(config), SimpleNamespace(found=print, note=print)
    plans = _plans(config, section, watch)
    shape = _shape(config, section, own_ray)
    assert (shape.count, shape.gpus) == (config.label.actors, 0.5 if device == "cuda" else 0)
    pool = _pool(config, section, plans, LabelFolder(plans).missing(), False, frozenset())
    lost: list[Lost] = []
    with closing(_receipts(pool, Sickness(print), lost)) as found:
        receipts = list(found)
    assert lost == []
    assert [(receipt.rows, receipt.errors) for receipt in receipts] == [(1, 0)] * 9
    parts.finish(plans, {"seconds": 1.0, "images_per_s": 1.0, "new_rows": 9, "stage_seconds": {}})
    wanted = {}
    for file in sorted((town / "train").iterdir()):
        (one,) = predict(Predictor(taught_bundle), [np.asarray(Image.open(file))])
        wanted[file.name] = np.bincount(one.mask_hw.ravel(), minlength=SPACE.num_classes)
    for row in pq.read_table(tmp_path / "labels" / "labels").to_pylist():
        mine = wanted[row["uri"].rsplit("/", 1)[1]]
        assert np.abs(mine - row["class_pixels"]).sum() / mine.sum() < 0.05
