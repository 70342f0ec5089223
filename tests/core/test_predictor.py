"""Windows, scales and mirrors: every way of looking agrees where it must."""

import numpy as np
import pytest
import torch

from segray.config import InferSection
from segray.core.datasets import streets
from segray.core.predictor import Predictor, _starts


class Pointwise(torch.nn.Module):
    """A model that looks at one pixel only: windows and mirrors can change nothing."""

    def __init__(self, classes):
        super().__init__()
        self.head = torch.nn.Conv2d(3, classes, 1)

    def forward(self, images):
        return self.head(images)


def predictor_of(tiny_bundle, model=None, **infer):
    torch.manual_seed(1)
    more = {key: infer.pop(key) for key in ("threshold", "confidence_maps") if key in infer}
    predictor = Predictor(str(tiny_bundle), infer=InferSection(**infer), **more)
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
def test_a_window_changes_nothing_for_a_model_of_single_pixels(tiny_bundle, frame, window, more):
    whole = predict(predictor_of(tiny_bundle, window="50x70"), frame)
    slid = predict(predictor_of(tiny_bundle, window=window, **more), frame)
    assert (slid.mask_hw != whole.mask_hw).mean() < 0.001  # ties alone
    assert slid.confidence_mean == pytest.approx(whole.confidence_mean, abs=1e-4)


def test_flip_makes_a_mirrored_frame_give_the_mirrored_mask(tiny_bundle, frame):
    torch.manual_seed(0)
    predictor = Predictor(str(tiny_bundle), infer=InferSection(flip=True))
    mask = predict(predictor, frame).mask_hw
    mirrored = predict(predictor, np.ascontiguousarray(frame[:, ::-1])).mask_hw
    assert (mask == mirrored[:, ::-1]).mean() > 0.99


def test_scales_are_averaged_as_probabilities(tiny_bundle, frame):
    one = predict(predictor_of(tiny_bundle, scales=[1.0]), frame)
    again = predict(predictor_of(tiny_bundle, scales=[1.0, 1.0]), frame)
    assert (one.mask_hw == again.mask_hw).mean() > 0.999
    assert again.confidence_mean == pytest.approx(one.confidence_mean, abs=1e-4)
    other = predict(predictor_of(tiny_bundle, scales=[0.5, 1.0, 2.0]), frame)
    assert other.mask_hw.shape == (50, 70)


def test_pixels_under_the_threshold_are_void(tiny_bundle, frame):
    sure = predict(predictor_of(tiny_bundle, threshold=0.01), frame).mask_hw
    plain = predict(predictor_of(tiny_bundle), frame).mask_hw
    assert np.array_equal(sure, plain)
    assert (predict(predictor_of(tiny_bundle, threshold=0.999), frame).mask_hw == 255).all()


def test_confidence_maps_are_the_highest_probability_at_source_size(tiny_bundle, frame):
    prediction = predict(predictor_of(tiny_bundle, window="50x70", confidence_maps=True), frame)
    assert prediction.confidence_hw.shape == (50, 70)
    assert prediction.confidence_hw.mean() / 255 == pytest.approx(prediction.confidence_mean, abs=0.003)
    assert predict(predictor_of(tiny_bundle), frame).confidence_hw is None
