"""Windows, scales and mirrors: every way of looking agrees where it must."""

import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.nn import functional

from segray.core import precision as precision_rule
from segray.core.clock import Clock
from segray.core.data import streets
from segray.core.data.streets import LABEL_SPACE
from segray.core.infer import logit_maps
from segray.core.infer import predictor as module
from segray.core.infer.predictor import Predictor, _starts
from segray.core.models import build, bundle, forward
from segray.core.models.fold import fold_batch_norm
from segray.core.models.info import BundleInfo
from segray.core.precision import cast_weights
from segray.core.transforms import normalize, to_float
from segray.errors import ConfigError, InputTooLarge, ModelError, ModelTooLarge
from segray.sections.labelling import InferSection
from segray.sections.training import ModelSection


class Pointwise(torch.nn.Module):
    """A model that looks at one pixel only: windows and mirrors can change nothing."""

    def __init__(self, classes):
        super().__init__()
        self.head = torch.nn.Conv2d(3, classes, 1)

    def forward(self, images):
        return self.head(images)


def predictor_of(plain_bundle, model=None, **infer):
    torch.manual_seed(1)
    more = {key: infer.pop(key) for key in ("threshold", "confidence_maps") if key in infer}
    predictor = Predictor(str(plain_bundle), infer=InferSection(**infer), **more)
    predictor.model = model or Pointwise(predictor.label_space.num_classes)
    return predictor


def predict(predictor, frame):
    return predictor.predict([predictor.prepare(frame)], [frame.shape[:2]])[0]


@pytest.fixture(scope="module")
def frame():
    return streets.draw(3, (50, 70))[0]


@pytest.mark.parametrize(
    ("length", "window", "overlap", "starts"),
    [
        (10, 10, 0.5, [0]),
        (11, 10, 0.5, [0, 1]),
        (20, 10, 0.0, [0, 10]),
        (21, 10, 0.0, [0, 6, 11]),
        (20, 10, 0.5, [0, 5, 10]),
        (5, 5, 0.99, [0]),
        (7, 5, 0.99, [0, 1, 2]),
    ],
)
def test_windows_cover_a_side_to_its_end(length, window, overlap, starts):
    # round() takes 5.5 to the even 6
    assert _starts(length, window, overlap) == starts


@pytest.mark.parametrize("window", ["32x32", "50x70", "33x17", "500x500"])
@pytest.mark.parametrize("more", [{}, {"flip": True}, {"overlap": 0.5}])
def test_a_window_changes_nothing_for_a_model_of_single_pixels(plain_bundle, frame, window, more):
    whole = predict(predictor_of(plain_bundle, window="50x70"), frame)
    slid = predict(predictor_of(plain_bundle, window=window, **more), frame)
    assert (slid.mask_hw != whole.mask_hw).mean() < 0.001  # ties alone
    assert slid.confidence_mean == pytest.approx(whole.confidence_mean, abs=1e-4)


def test_flip_makes_a_mirrored_frame_give_the_mirrored_mask(plain_bundle, frame):
    torch.manual_seed(0)
    predictor = Predictor(str(plain_bundle), infer=InferSection(flip=True))
    mask = predict(predictor, frame).mask_hw
    mirrored = predict(predictor, np.ascontiguousarray(frame[:, ::-1])).mask_hw
    assert (mask == mirrored[:, ::-1]).mean() > 0.99


def test_scales_are_averaged_as_probabilities(plain_bundle, frame):
    one = predict(predictor_of(plain_bundle, scales=[1.0]), frame)
    again = predict(predictor_of(plain_bundle, scales=[1.0, 1.0]), frame)
    assert (one.mask_hw == again.mask_hw).mean() > 0.999
    assert again.confidence_mean == pytest.approx(one.confidence_mean, abs=1e-4)
    other = predict(predictor_of(plain_bundle, scales=[0.5, 1.0, 2.0]), frame)
    assert other.mask_hw.shape == (50, 70)


class Patches(Pointwise):
    """A model from elsewhere that sees whole patches of 16 pixels: of a white one class 1, of a black one class 0."""

    as_is = True

    def __init__(self, classes, sizes=None):
        super().__init__(classes)
        self.sizes, self.seen = sizes, []

    def forward(self, images):
        self.seen.append(tuple(images.shape[-2:]))
        if self.sizes and self.seen[-1] not in self.sizes:
            raise RuntimeError("The size of tensor a must match the size of tensor b")
        logits = torch.full((len(images), self.head.out_channels, *images.shape[-2:]), -9.0)
        logits[:, 0] = 0
        logits[:, 1] = functional.interpolate(functional.avg_pool2d(images[:, :1], 16), images.shape[-2:])[:, 0]
        return logits


def from_elsewhere(plain_bundle, sizes=None, **infer):
    predictor = predictor_of(plain_bundle, Patches(11, sizes), **infer)
    predictor.as_is = True
    predictor._find_step()
    return predictor


@pytest.mark.parametrize("window", ["75x75", "128x128", "64x75"])
def test_a_model_from_elsewhere_sees_whole_patches_of_a_window(plain_bundle, window):
    """It would leave out the pixels behind the last whole patch, and stretch the others over them."""
    frame = np.zeros((75, 75, 3), np.uint8)
    frame[:, 48:] = 255
    mask = predict(from_elsewhere(plain_bundle, window=window), frame).mask_hw
    assert np.array_equal(mask, frame[..., 0] // 255)


def test_scaled_frames_of_a_model_from_elsewhere_have_whole_patches(plain_bundle, frame):
    predictor = from_elsewhere(plain_bundle, scales=[0.7, 1.3])
    predict(predictor, frame)
    assert {*predictor.model.seen} == {(32, 32), (32, 64)}  # 0.7 and 1.3 of 32×48


def test_a_model_of_one_size_takes_that_as_its_window_alone(plain_bundle, frame):
    for window in ((64, 64), (40, 40)):
        assert predict(from_elsewhere(plain_bundle, [window], window=window), frame).mask_hw.shape == (50, 70)
    for other, size in (({"window": (32, 32)}, "32×32"), ({"scales": [1.0, 2.0]}, "64×96")):
        with pytest.raises(ModelError) as error:
            from_elsewhere(plain_bundle, [(32, 48)], **other)
        assert str(error.value) == (
            f"unet-plain does not run with this window or these scales (The model does not take frames of {size} "
            "pixels (height × width, padded to 32)). "
            "Its own size is 32×48 (height × width): leave out infer.window and infer.scales, or give that as the window."
        )


def keeping(plain_bundle, **more):
    """A predictor of a bundle that keeps ratios, whose model says 1 of white pixels, 0 of black ones, and half of each of grey."""
    predictor = predictor_of(plain_bundle, **more)
    predictor.info = predictor.info.model_copy(
        update={"resize": "keep", "input_size": (64, 96), "mean": (0, 0, 0), "std": (1, 1, 1)}
    )
    head = predictor.model.head
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.constant_(head.bias, -100)
    with torch.no_grad():
        head.weight[1, 0], head.bias[0], head.bias[1] = 200, 0, -100
    return predictor


def rectangles(size):
    """Two with edges at even pixels, one of them in the corner that is farthest from the first pixel."""
    truth = np.zeros(size, np.uint8)
    truth[4:18, 2:10] = truth[size[0] // 4 * 2 :, size[1] // 4 * 2 :] = 1
    return truth


def shown(truth):
    return np.stack([truth * 255] * 3, axis=-1)


@pytest.mark.parametrize("size", [(61, 96), (64, 33), (7, 96), (128, 66), (64, 192), (32, 30), (20, 48)])
def test_shapes_in_frames_of_other_ratios_come_back_to_the_pixel(plain_bundle, size):
    """Frames that lie in 64×96 unresized, halved and doubled, each beside or above its padding."""
    truth = rectangles(size)
    found = predict(keeping(plain_bundle, flip=True, confidence_maps=True), shown(truth))
    assert np.array_equal(found.mask_hw, truth)
    assert found.confidence_hw.shape == size
    assert found.confidence_mean > 0.99  # padding, of which the model is not sure, does not count


@pytest.mark.parametrize("size", [(91, 53), (53, 91), (200, 41), (41, 200), (37, 38)])
def test_a_circle_stays_where_it_is_at_odd_sizes(plain_bundle, size):
    rows, columns = np.ogrid[: size[0], : size[1]]
    circle = ((rows - size[0] / 2) ** 2 + (columns - size[1] / 2) ** 2 < 15**2).astype(np.uint8)
    mask = predict(keeping(plain_bundle), shown(circle)).mask_hw
    assert (mask & circle).sum() / (mask | circle).sum() > 0.95
    drift = [np.mean(a) - np.mean(b) for a, b in zip(mask.nonzero(), circle.nonzero(), strict=True)]
    assert np.abs(drift).max() < 0.3


@pytest.mark.parametrize("finish", ["_finish", "_finish_at_once"], ids=["cpu", "as on a GPU"])
def test_frames_of_all_ratios_are_one_batch_for_a_model_that_keeps_them(plain_bundle, monkeypatch, finish):
    sizes = [(64, 33), (61, 96), (128, 66), (64, 33)]
    predictor = keeping(plain_bundle)
    alone = [predict(predictor, shown(rectangles(size))) for size in sizes]
    counting = Small(11, most=9)
    counting.load_state_dict(predictor.model.state_dict())
    predictor.model, predictor.most_at_once = counting, 4
    monkeypatch.setattr(predictor, "_finish", getattr(predictor, finish))
    points = [np.array([[5, 3], [size[0] - 1, size[1] - 1]]) for size in sizes]
    found = predictor.predict([predictor.prepare(shown(rectangles(size))) for size in sizes], sizes, points)
    assert counting.asked == [4]
    assert all(np.array_equal(one.mask_hw, other.mask_hw) for one, other in zip(found, alone, strict=True))
    assert all((one.logits_nc[:, 1] > one.logits_nc[:, 0]).all() for one in found)  # both points are white


def test_a_window_sees_frames_at_their_own_size_also_for_a_model_that_keeps_ratios(plain_bundle):
    truth = rectangles((90, 50))
    assert np.array_equal(predict(keeping(plain_bundle, window="40x40"), shown(truth)).mask_hw, truth)


def test_pixels_under_the_threshold_are_void(plain_bundle, frame):
    sure = predict(predictor_of(plain_bundle, threshold=0.01), frame).mask_hw
    plain = predict(predictor_of(plain_bundle), frame).mask_hw
    assert np.array_equal(sure, plain)
    assert (predict(predictor_of(plain_bundle, threshold=0.999), frame).mask_hw == 255).all()


def test_confidence_maps_are_the_highest_probability_at_source_size(plain_bundle, frame):
    prediction = predict(predictor_of(plain_bundle, window="50x70", confidence_maps=True), frame)
    assert prediction.confidence_hw.shape == (50, 70)
    assert prediction.confidence_hw.mean() / 255 == pytest.approx(prediction.confidence_mean, abs=0.003)
    assert predict(predictor_of(plain_bundle), frame).confidence_hw is None


GPU_FULL = torch.OutOfMemoryError("CUDA out of memory.")


class Small(Pointwise):
    """A device whose memory holds `most` images: what it is asked for is written down."""

    def __init__(self, classes, most, error=GPU_FULL):
        super().__init__(classes)
        self.most, self.asked, self.error = most, [], error

    def forward(self, images):
        self.asked.append(len(images))
        if len(images) > self.most:
            raise self.error
        return super().forward(images)


def test_a_batch_that_does_not_fit_is_halved_for_good(plain_bundle):
    frames = [streets.draw(seed, (32, 48))[0] for seed in range(9)]
    predictor = predictor_of(plain_bundle)
    single = [predict(predictor, frame) for frame in frames]
    predictor.model, sizes = Small(11, most=3), [(32, 48)] * 9
    predictor.model.load_state_dict(predictor_of(plain_bundle).model.state_dict())
    for asked in ([9, 4, 2, 2, 2, 2, 1], [2, 2, 2, 2, 1]):
        found = predictor.predict([predictor.prepare(frame) for frame in frames], sizes)
        assert predictor.model.asked == asked
        assert all(np.array_equal(a.mask_hw, b.mask_hw) for a, b in zip(found, single, strict=True))
        assert [a.confidence_mean for a in found] == pytest.approx([b.confidence_mean for b in single], abs=1e-6)
        predictor.model.asked = []


def test_windows_that_do_not_fit_are_halved_for_good(plain_bundle, frame):
    whole = predict(predictor_of(plain_bundle, window="20x70", overlap=0), frame)
    predictor = predictor_of(plain_bundle, window="20x70", overlap=0)
    small = Small(11, most=2)
    small.load_state_dict(predictor.model.state_dict())
    predictor.model = small
    assert np.array_equal(predict(predictor, frame).mask_hw, whole.mask_hw)
    assert np.array_equal(predict(predictor, frame).mask_hw, whole.mask_hw)
    assert small.asked == [3, 1, 1, 1, 1, 1, 1]


def test_a_single_frame_that_does_not_fit_is_one_line(plain_bundle, frame):
    with pytest.raises(ModelError) as error:
        predict(predictor_of(plain_bundle, Small(11, most=0)), frame)
    assert str(error.value) == (
        "unet-plain does not fit into the memory of cpu with a single frame of 32×48 (height × width). "
        "Give it smaller windows, such as --window 256x512, or a machine that nothing else uses."
    )


CPU_FULL = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(CPU_FULL),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"),
        MemoryError(),
    ],
)
def test_a_cpu_whose_memory_is_exhausted_is_treated_as_a_gpu(plain_bundle, frame, error):
    predictor = predictor_of(plain_bundle)
    whole = predict(predictor, frame)
    predictor.model = Small(11, most=2, error=error)
    predictor.model.load_state_dict(predictor_of(plain_bundle).model.state_dict())
    found = predictor.predict([predictor.prepare(frame)] * 3, [frame.shape[:2]] * 3)
    assert predictor.model.asked == [3, 1, 1, 1]
    assert all(np.array_equal(one.mask_hw, whole.mask_hw) for one in found)
    with pytest.raises(ModelTooLarge, match="does not fit into the memory of cpu with a single frame of 32×48"):
        predict(predictor_of(plain_bundle, Small(11, most=0, error=error)), frame)


def test_an_error_that_is_not_of_memory_stays_itself(plain_bundle, frame):
    with pytest.raises(RuntimeError, match="size mismatch"):
        predict(predictor_of(plain_bundle, Small(11, most=0, error=RuntimeError("size mismatch"))), frame)


def test_a_frame_that_memory_does_not_hold_while_it_is_resized_is_a_line(plain_bundle, frame, monkeypatch):
    def full(*_):
        raise RuntimeError(CPU_FULL)

    monkeypatch.setattr("segray.core.infer.predictor.fit", full)
    with pytest.raises(InputTooLarge) as error:
        predictor_of(plain_bundle).prepare(frame)
    assert str(error.value) == (
        "This machine's memory does not hold a frame of 50×70 and 32×48 pixels (height × width), as it is and as the "
        "model sees it. Lower the batch size, or end what else uses the memory."
    )


@pytest.mark.parametrize("finish", [Predictor._finish, Predictor._finish_at_once], ids=["cpu", "as on a GPU"])
@pytest.mark.parametrize("size", [(1, 1), (40, 56), (200, 300), (131, 56), (20, 400), (130, 57)])
def test_masks_and_figures_are_those_of_all_logits_at_once(plain_bundle, size, finish):
    torch.manual_seed(2)
    coarse = functional.interpolate(torch.randn(2, 11, 6, 8), (130, 56), mode="bicubic") * 3
    predictor = Predictor(str(plain_bundle), confidence_maps=True)
    coarse[0, :, :60, :20] = torch.randn(11, 60, 20)  # where no two neighbours agree
    points = np.stack([np.random.default_rng(0).integers(0, side, 20) for side in size], axis=1)
    jobs = [module._Job(None, size, points)] * 2
    with torch.inference_mode():
        pending = finish(predictor, coarse.contiguous(memory_format=torch.channels_last), jobs)
        found = [one() for one in pending]
    logits = functional.interpolate(coarse, size, mode="bilinear", align_corners=False)
    probabilities = coarse.softmax(1)
    first, second = probabilities.topk(2, dim=1).values.unbind(1)
    entropy = torch.special.entr(probabilities).sum(1) / np.log(11)
    for i, one in enumerate(found):
        assert np.array_equal(one.mask_hw, logits[i].argmax(0).numpy())
        confidence = logits[i].softmax(0).amax(0).numpy() * 255
        assert np.abs(one.confidence_hw - confidence).max() <= 0.51
        figures = (first[i].mean(), entropy[i].mean(), (first[i] - second[i] < 0.5).double().mean())
        assert one[1:4] == pytest.approx([float(figure) for figure in figures], abs=1e-5)
        assert one.logits_nc == pytest.approx(logits[i, :, points[:, 0], points[:, 1]].T.numpy(), abs=1e-4)


@pytest.mark.parametrize("classes", [2, 11])
@pytest.mark.parametrize("at_once", [1 << 28, 1 << 15, 1])
def test_a_gpus_large_steps_give_what_the_cpus_small_ones_do(plain_bundle, monkeypatch, classes, at_once):
    monkeypatch.setattr(logit_maps, "AT_ONCE_LOGITS", at_once)  # all frames, some, and not even one at once
    torch.manual_seed(3)
    logits = functional.interpolate(torch.randn(5, classes, 6, 8), (40, 56), mode="bicubic") * 3
    predictor = Predictor(str(plain_bundle), confidence_maps=True, threshold=0.6)
    points = np.array([[0, 0], [7, 9]])
    for sizes in ([(50, 70)] * 5, [(50, 70), (40, 56), (20, 30), (50, 70), (131, 57)]):
        jobs = [module._Job(None, size, points) for size in sizes]
        with torch.inference_mode():
            few, many = ([one() for one in finish(logits.clone(), jobs)]
                         for finish in (predictor._finish, predictor._finish_at_once))  # fmt: skip
        for one, other in zip(few, many, strict=True):
            assert np.array_equal(one.mask_hw, other.mask_hw)
            assert np.array_equal(one.confidence_hw, other.confidence_hw)
            assert np.array_equal(one.logits_nc, other.logits_nc)
            assert one[1:4] == other[1:4]


def test_another_thread_queues_its_batch_while_one_waits_for_a_gpu(plain_bundle, monkeypatch):
    predictor = predictor_of(plain_bundle)
    predictor.lock, taken, clock = threading.RLock(), [], Clock()
    frames = [streets.draw(seed, (32, 48))[0] for seed in range(3)]
    wanted = predictor.predict(frames, [(32, 48)] * 3)

    def wait():
        other = threading.Thread(target=lambda: taken.append(predictor.lock.acquire(timeout=5)))
        other.start()
        other.join()

    monkeypatch.setattr(predictor, "_finish", predictor._finish_at_once)
    monkeypatch.setattr(module.logit_maps, "queued", lambda device: wait)
    (found,) = predictor.predict(frames[:1], [(32, 48)], clock=clock)
    assert np.array_equal(found.mask_hw, wanted[0].mask_hw)
    assert taken == [True]
    assert {*clock.seconds} == {"wait", "model"}


@pytest.mark.parametrize(
    ("arch", "encoder"),
    [("unet", "resnet18"), ("segformer", "mit_b0"), ("deeplabv3plus", "mobilenet_v2")],
)
def test_weights_that_are_cast_once_give_what_autocast_gives(arch, encoder):
    torch.manual_seed(0)
    model = fold_batch_norm(build(ModelSection(arch=arch, encoder=encoder), 5).eval())
    image = torch.randn(2, 3, 64, 96)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        wanted = forward(model, image)
        cast_weights(model, torch.bfloat16)
        assert torch.equal(forward(model, image), wanted)
    assert torch.bfloat16 in {parameter.dtype for parameter in model.parameters()}


def test_the_temperature_softens_probabilities_and_leaves_classes(plain_bundle, frame):
    sharp = predict(predictor_of(plain_bundle), frame)
    predictor = predictor_of(plain_bundle)
    predictor.info.temperature = 4.0
    soft = predict(predictor, frame)
    assert np.array_equal(soft.mask_hw, sharp.mask_hw)
    assert soft.confidence_mean < sharp.confidence_mean
    assert soft.entropy_mean > sharp.entropy_mean


@pytest.mark.parametrize(
    ("precision", "line"),
    [
        ("fp16", "infer.precision fp16 needs a GPU; take fp32, or auto."),
        ("bf16", "infer.precision bf16: this CPU lacks the instructions and would be ten times slower; take fp32, or auto."),
    ],
)  # fmt: skip
def test_a_precision_that_the_cpu_lacks_is_one_line(plain_bundle, monkeypatch, precision, line):
    monkeypatch.setattr(precision_rule, "cpu_has", lambda *names: False)
    with pytest.raises(ConfigError) as error:
        predictor_of(plain_bundle, precision=precision)
    assert str(error.value) == line


def test_bf16_is_nearly_fp32_where_the_cpu_has_it(plain_bundle, frame, monkeypatch):
    monkeypatch.setattr(precision_rule, "cpu_has", lambda *names: True)
    half, full = (predict(predictor_of(plain_bundle, precision=name), frame) for name in ("bf16", "auto"))
    assert half.confidence_mean == pytest.approx(full.confidence_mean, abs=0.01)
    assert half.confidence_mean != full.confidence_mean


@pytest.mark.parametrize(
    ("arch", "encoder", "engine"),
    [
        ("unet", "resnet18", "torch"),
        pytest.param("unet", "resnet18", "onnx", marks=pytest.mark.slow),
        ("segformer", "mit_b0", "torch"),
        pytest.param("deeplabv3plus", "mobilenet_v2", "onnx", marks=pytest.mark.long),
        ("danet", "resnet18", "torch"),
    ],
)
def test_labels_of_every_engine_are_pytorchs_own_but_at_ties(tmp_path, arch, encoder, engine, capsys):
    """The reference: the model as it was built, all frames in one batch, nothing folded, channels first."""
    torch.manual_seed(0)
    section, sizes = ModelSection(arch=arch, encoder=encoder), [(50, 70)] * 3
    model = build(section, LABEL_SPACE.num_classes)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:  # as trained, or folding would have nothing to do
        torch.nn.init.uniform_(norm.running_mean, -0.1, 0.1)
        torch.nn.init.uniform_(norm.running_var, 0.8, 1.2)
    info = BundleInfo(model=section, label_space=LABEL_SPACE.to_dict(), input_size=(64, 96))
    bundle.save(tmp_path / "best", model.eval(), info)
    predictor = Predictor(str(tmp_path / "best"), infer=InferSection(engine=engine))
    seen = [predictor.prepare(streets.draw(seed, sizes[0])[0]) for seed in range(3)]
    masks = np.stack([found.mask_hw for found in predictor.predict(seen, sizes)])

    with torch.inference_mode():
        normal = normalize(to_float(torch.from_numpy(np.stack(seen))), info.mean, info.std).contiguous()
        logits = functional.interpolate(forward(model, normal), sizes[0], mode="bilinear")
    first, second = logits.topk(2, dim=1).values.unbind(1)
    other = torch.from_numpy(masks).long() != logits.argmax(1)
    tie = first - second < 1e-4 * (logits.max() - logits.min())
    with capsys.disabled():
        print(f" ties {other.float().mean():.4%}", end="")
    assert not (other & ~tie).any()
    assert tie.float().mean() < 0.01


@pytest.mark.slow
@pytest.mark.usefixtures("onnx_once")
def test_onnx_runtime_takes_windows_scales_and_a_temperature(plain_bundle, frame, tmp_path):
    shutil.copytree(plain_bundle, tmp_path / "warm")
    bundle.set_temperature(str(tmp_path / "warm"), 2.0, {})
    for ways in ({"window": (32, 48), "overlap": 0.5}, {"scales": [1.0, 1.5], "flip": True}, {}):
        torch_, onnx = (
            predict(Predictor(str(tmp_path / "warm"), infer=InferSection(engine=name, **ways)), frame)
            for name in ("torch", "onnx")
        )
        assert (torch_.mask_hw != onnx.mask_hw).mean() < 0.01
        assert onnx.confidence_mean == pytest.approx(torch_.confidence_mean, abs=1e-4)


@pytest.mark.long
@pytest.mark.usefixtures("onnx_once")
def test_a_model_that_is_onnx_for_one_size_alone_takes_no_window(tmp_path):
    section = ModelSection(arch="pspnet", encoder="resnet18")
    info = BundleInfo(model=section, label_space=LABEL_SPACE.to_dict(), input_size=(32, 48))
    bundle.save(tmp_path / "best", build(section, LABEL_SPACE.num_classes), info)
    Predictor(str(tmp_path / "best"), infer=InferSection(engine="onnx"))
    with pytest.raises(ModelError, match=r"^pspnet over resnet18 is ONNX for 32×48 alone; take --engine torch, or "):
        Predictor(str(tmp_path / "best"), infer=InferSection(engine="onnx", window=(32, 32)))


@pytest.mark.parametrize(("device", "precision"), [("cuda", "fp32"), ("cpu", "bf16")])
def test_onnx_runtime_is_for_cpus_and_fp32(plain_bundle, monkeypatch, device, precision):
    monkeypatch.setattr(precision_rule, "cpu_has", lambda *names: True)
    with pytest.raises(
        ConfigError, match=r"^infer.engine onnx is for CPUs and fp32, not for .*; take torch, or auto\.$"
    ):
        Predictor(str(plain_bundle), device, InferSection(engine="onnx", precision=precision))


def test_an_engine_that_is_not_installed_is_one_line(plain_bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        ConfigError, match=r"^onnxruntime is not installed; pip install 'segray\[export\]' brings it\.$"
    ):
        Predictor(str(plain_bundle), infer=InferSection(engine="onnx"))


class Seen(Pointwise):
    """Remembers how many threads PyTorch had, and how many were at work in it at once."""

    def __init__(self, classes):
        super().__init__(classes)
        self.busy, self.most, self.threads = 0, 0, []

    def forward(self, images):
        self.busy += 1
        self.most = max(self.most, self.busy)
        self.threads.append(torch.get_num_threads())
        time.sleep(0.01)
        self.busy -= 1
        return super().forward(images)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_callers_share_the_threads_of_a_cpu_and_take_turns_on_a_gpu(plain_bundle, device):
    frames = [streets.draw(seed, (32, 48))[0] for seed in range(12)]
    predictor = predictor_of(plain_bundle, Seen(11))
    predictor._threads = 3
    if device == "cuda":
        predictor.lock = threading.RLock()

    before = torch.get_num_threads()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda frame: predict(predictor, frame), frames))
    assert set(predictor.model.threads) == {3}
    assert torch.get_num_threads() == before
    assert predictor.model.most == 1 if device == "cuda" else predictor.model.most > 1
    for frame, prediction in zip(frames, found, strict=True):
        assert np.array_equal(prediction.mask_hw, predict(predictor, frame).mask_hw)


def test_large_frames_go_one_by_one_on_a_cpu(plain_bundle, monkeypatch):
    monkeypatch.setattr(module, "CPU_PX", 2 * 32 * 48)
    predictor = predictor_of(plain_bundle, Sizes(11))
    frames = [streets.draw(seed, (32, 48))[0] for seed in range(5)]
    predictor.predict([predictor.prepare(frame) for frame in frames], [(32, 48)] * 5)
    assert predictor.model.seen == [2, 2, 1]


class Sizes(Pointwise):
    def __init__(self, classes):
        super().__init__(classes)
        self.seen = []

    def forward(self, images):
        self.seen.append(len(images))
        return super().forward(images)


@pytest.mark.parametrize("infer", [{}, {"window": [16, 24]}, {"flip": True}])
def test_a_black_frame_checks_the_model_and_nothing_else(tiny_bundle, infer):
    predictor = predictor_of(tiny_bundle, **infer)
    predictor.check()
    predictor.model = None
    with pytest.raises(TypeError):
        predictor.check()


@pytest.mark.parametrize(
    ("error", "device"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (torch.AcceleratorError("HIP error: unspecified launch failure"), True),
        (RuntimeError("shape '[2, 3]' is invalid for input of size 5"), False),
        (IndexError("list index out of range"), False),
    ],
)
def test_errors_of_a_device_are_told_from_others(error, device):
    assert module.is_of_device(error) is device
