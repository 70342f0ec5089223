"""Several real processes over gloo: what they compute together does not depend on how many they are."""

import copy
import multiprocessing
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.layers.norm_act import convert_sync_batchnorm
from torch.nn.parallel import DistributedDataParallel

from segray.config import load
from segray.core import precision
from segray.core.data import MemorySamples, streets
from segray.core.models import build
from segray.core.samples import Sample, TrainData
from segray.core.training import loop, optim, workers
from segray.core.training.checkpoint import read_history
from segray.core.training.objective import make_objective
from segray.core.training.workers import LocalWorker
from segray.errors import ConfigError
from segray.sections.labelling import ClusterSection
from segray.sections.training import ModelSection

SPACE = streets.LABEL_SPACE
# A process is a copy of one that has imported these, which takes seconds of a processor.
multiprocessing.set_forkserver_preload(["segmentation_models_pytorch", "segray.core.training.loop"])


def processes(run, given, count):
    """Call run(rank, *given) in so many processes."""
    mp.start_processes(run, given, count, start_method="forkserver")


def samples(count, first=0):
    drawn = [streets.draw(first + i, (32, 32)) for i in range(count)]
    return MemorySamples([Sample(image, SPACE.apply(mask, "")) for image, mask in drawn])


class GlooWorker:
    device = torch.device("cpu")

    def __init__(self, rank, world_size):
        self.rank, self.world_size = rank, world_size

    def wrap(self, model):
        return DistributedDataParallel(model, **workers.DDP)

    def started(self, device):
        pass

    def at(self, phase, done, of):
        pass

    def report(self, row):
        pass


def work(rank, world_size, store, out):
    """Score a model, train two epochs with the encoder thawing in between, and keep what came of both."""
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    worker = GlooWorker(rank, world_size) if world_size > 1 else LocalWorker()
    data = TrainData(samples(7), samples(5, 50), SPACE, (32, 32))
    (out / "run").mkdir(exist_ok=True)
    settings = {
        "train.out": str(out / "run"), "train.epochs": 2, "train.batch_size": 6,
        "model.encoder": "mobilenet_v2", "model.options": {"decoder_channels": [32, 16, 16, 8, 8]},
        "train.freeze_encoder": True, "train.unfreeze_after": 1, "train.ema": 0.9, "train.class_weights": "median",
    }  # fmt: skip
    config = load(None, settings)
    scored = {}
    for count in (1, 4, 5):
        torch.manual_seed(3)
        model = build(config.model, SPACE.num_classes)
        part = TrainData(data.train, MemorySamples(data.val.samples[:count]), SPACE, (32, 32))
        one_by_one = config.changed({"train.batch_size": world_size})  # equal sums to the last bit need equal batches
        confusion, loss = loop.evaluate(worker, model, one_by_one, part, make_objective(worker, config, part))
        scored[count] = (confusion.tolist(), loss)
    loop.fit(worker, config, data)
    stopped = config.changed({"train.out": str(out / "stopped")})
    (out / "stopped").mkdir(exist_ok=True)
    worker.report = lambda row: 1 / 0  # every rank ends after its first epoch
    try:
        loop.fit(worker, stopped, data)
    except ZeroDivisionError:
        worker.report = lambda row: None
    if world_size > 1:
        dist.barrier()  # as a start anew is: the first rank has written its epoch
    loop.fit(worker, stopped, data)
    row = read_history(str(out / "run"))[0]
    assert row["device"].startswith(f"{world_size} CPU worker{'s' * (world_size > 1)} × 1 thread, ")
    if rank == 0:
        torch.save(scored, out / "scored.pt")
    if world_size > 1:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 0), torch.float16), ((7, 5), torch.float16), ((8, 0), torch.bfloat16)]
)
def test_a_gpu_that_only_emulates_bf16_computes_in_fp16(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision.autocast_dtype(load().train, torch.device("cuda")) == dtype


def test_a_run_says_what_all_its_workers_compute_on(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    def gather(kinds, mine):
        kinds[:] = [mine, mine, "Tesla T4"]

    monkeypatch.setattr(dist, "all_gather_object", gather)
    three = SimpleNamespace(world_size=3, device=torch.device("cuda"))
    assert workers.runs_on(load().train, three) == "2 × H100 80GB HBM3, 1 × Tesla T4, bf16"
    torch.set_num_threads(1)
    fp32 = load(None, {"train.precision": "fp32"}).train
    assert workers.runs_on(fp32, LocalWorker()) == "1 CPU worker × 1 thread, fp32"


@pytest.mark.parametrize(
    ("mine", "theirs", "asked", "agreed"),
    [
        ((8, 0), "fp16", "auto", "fp16"),
        ((7, 5), "bf16", "auto", "fp16"),
        ((8, 0), "bf16", "auto", "auto"),
        ((7, 5), "fp16", "auto", "auto"),
        ((8, 0), "fp32", "fp32", "fp32"),
    ],
)
def test_gpus_of_several_generations_train_in_one_precision(monkeypatch, mine, theirs, asked, agreed):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: mine)

    def gather(names, own):
        names[:] = [own, theirs]

    monkeypatch.setattr(dist, "all_gather_object", gather)
    two = SimpleNamespace(world_size=2, device=torch.device("cuda"))
    config = load(None, {"train.precision": asked})
    assert workers.in_one_precision(config, two).train.precision == agreed


@pytest.mark.parametrize(
    ("there", "asked", "device"),
    [(True, None, "cuda"), (True, False, "cpu"), (False, None, "cpu"), (True, True, "cuda")],
)
def test_a_run_without_ray_uses_the_gpu_of_this_machine(monkeypatch, there, asked, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert workers.local_device(ClusterSection(gpu=asked)) == device


def test_a_gpu_that_is_asked_for_and_not_there_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"^cluster.gpu is true, and this machine has no GPU that torch can use;"):
        workers.local_device(ClusterSection(gpu=True))


@pytest.mark.parametrize("encoder", ["timm-efficientnet-b0", "timm-skresnet18", "tu-mobilenetv3_small_050"])
def test_batch_norms_over_all_workers_keep_their_activations(encoder):
    """Without a group of processes they compute what plain ones do, trained and evaluated."""
    torch.manual_seed(0)
    model = build(ModelSection(encoder=encoder, options={"decoder_channels": [32, 16, 16, 8, 8]}), 3)
    synchronised = convert_sync_batchnorm(copy.deepcopy(model))
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in synchronised.modules())
    image = torch.randn(2, 3, 64, 64)
    for training in (True, False):
        with torch.no_grad():
            torch.manual_seed(1)  # of dropped paths
            wanted = model.train(training)(image)
            torch.manual_seed(1)
            given = synchronised.train(training)(image)
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-4)


def accumulate(rank, store):
    """Groups of three steps, whose gradients are averaged over two workers once a group, and once a step."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    worker, data = GlooWorker(rank, 2), TrainData(samples(6), samples(1, 50), SPACE, (32, 32))
    small = {"model.arch": "unet-plain", "model.options": {"channels": 4}, "train.batch_size": 2, "train.accumulate": 3}
    config = load(None, small)
    trained = []
    for apart in (True, False):
        torch.manual_seed(0)
        model = build(config.model, SPACE.num_classes)
        wrapped, entered = worker.wrap(model), []
        no_sync = wrapped.no_sync
        wrapped.no_sync = (lambda own=no_sync, seen=entered: seen.append(1) or own()) if apart else nullcontext
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        goal = make_objective(worker, config, data)
        learner = loop.Learner(wrapped, optim.make_optimizer(model, config.train), scaler, goal)
        for epoch in (1, 2):
            loop.train_epoch(worker, learner, config, data, epoch)
        assert len(entered) == 2 * apart  # the second of three steps: the first is DDP's own, the last moves
        trained.append([tensor.clone() for tensor in model.parameters()])
    for one, other in zip(*trained, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    dist.destroy_process_group()


@pytest.mark.slow
def test_gradients_that_gather_are_averaged_over_the_workers_once_a_group(tmp_path):
    processes(accumulate, (tmp_path / "store",), 2)


def share(rank, store):
    """An epoch of two steps of three frames: by two workers, of which one takes two of them, and by one alone."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    frames = MemorySamples([Sample(one.image_hwc, one.mask_hw.clip(max=10)) for one in samples(6).samples])
    data = TrainData(frames, samples(1, 50), SPACE, (32, 32))  # without void: each frame has as many pixels
    small = {"model.arch": "unet-plain", "model.options": {"channels": 4}, "model.batch_norm": False}
    config = load(None, {**small, "train.batch_size": 3, "augment.flip": 0.0, "train.optimizer": "sgd"})
    trained, losses = [], []
    for worker in (GlooWorker(rank, 2), LocalWorker()):
        torch.manual_seed(0)
        model = build(config.model, SPACE.num_classes)
        goal = make_objective(worker, config, data)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        learner = loop.Learner(worker.wrap(model), optim.make_optimizer(model, config.train), scaler, goal)
        losses.append(loop.train_epoch(worker, learner, config, data, 1)["loss"])
        trained.append([tensor.clone() for tensor in model.parameters()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for one, other in zip(*trained, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_with_unequal_shares_train_the_weights_of_one(tmp_path):
    processes(share, (tmp_path / "store",), 2)


def heads(rank, store):
    """Auxiliary heads over an encoder that is frozen for an epoch, by DDP as it is set and as it finds out by itself."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    worker, data = GlooWorker(rank, 2), TrainData(samples(8), samples(1, 50), SPACE, (32, 32))
    config = load(None, {"model.arch": "danet", "model.encoder": "mobilenet_v2", "train.batch_size": 4})
    trained = []
    for options in (workers.DDP, {"find_unused_parameters": True}):
        torch.manual_seed(0)
        model = build(config.model, SPACE.num_classes)
        optimizer, scaler = optim.make_optimizer(model, config.train), torch.amp.GradScaler("cpu", enabled=False)
        learner = loop.Learner(model, optimizer, scaler, make_objective(worker, config, data))
        for epoch, frozen in ((1, True), (2, False)):
            optim.freeze(model, frozen)
            learner.model = DistributedDataParallel(model, **options)
            loop.train_epoch(worker, learner, config, data, epoch)
        trained.append([tensor.clone() for tensor in model.parameters()])
    for one, other in zip(*trained, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    dist.destroy_process_group()


@pytest.mark.slow
def test_auxiliary_heads_over_a_frozen_encoder_train_by_two_workers(tmp_path):
    processes(heads, (tmp_path / "store",), 2)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.long)])
def test_scores_do_not_depend_on_the_workers_and_a_stopped_run_ends_as_a_whole_one(world, tmp_path):
    scored = []
    for world_size in (1, world):
        out = tmp_path / str(world_size)
        out.mkdir()
        if world_size == 1:
            work(0, 1, None, out)
        else:
            processes(work, (world_size, out / "store", out), world_size)
        scored.append(torch.load(out / "scored.pt", weights_only=True))
        assert (out / "run" / "best" / "segray.json").exists()
        whole, resumed = (torch.load(out / run / "last.pt", weights_only=True) for run in ("run", "stopped"))
        assert [row["epoch"] for row in resumed["history"]] == [1, 2]
        for key, tensor in whole["ema"].items():
            assert torch.allclose(tensor, resumed["ema"][key], rtol=1e-4, atol=1e-5), key
    for count in (1, 4, 5):
        confusion, loss = scored[0][count]
        for other in scored[1:]:
            assert other[count][0] == confusion
            assert other[count][1] == pytest.approx(loss, rel=1e-6)
