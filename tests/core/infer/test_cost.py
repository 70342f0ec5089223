"""Cost of a model: counted by hand where it can be, there where it is measured."""

import sys

import pytest
import torch

from segray.config import load
from segray.core.infer import cost
from segray.core.infer.cost import engine_speeds, labelling_cost, multiply_adds, training_step_s
from segray.core.models import forward_all
from segray.core.models.bundle import count_parameters
from segray.sections.labelling import InferSection


def test_multiply_adds_of_a_convolution_are_those_of_its_definition():
    model = torch.nn.Conv2d(3, 4, 3, padding=1)
    assert multiply_adds(model, (64, 96)) == 64 * 96 * 4 * 3 * 9


def test_a_bundle_has_a_speed_a_peak_and_a_size(plain_bundle):
    threads = torch.get_num_threads()
    found = labelling_cost(str(plain_bundle), "cpu", threads)
    assert found.images_per_s > 0
    assert found.peak_memory_mib is None or found.peak_memory_mib >= 0
    assert 0.01 < found.gmacs < 1
    assert found.parameters == count_parameters(str(plain_bundle))


@pytest.mark.slow
@pytest.mark.usefixtures("onnx_once")
def test_engines_are_timed_and_those_that_cannot_be_are_left_out(plain_bundle, monkeypatch):
    threads = torch.get_num_threads()
    speeds = engine_speeds(str(plain_bundle), InferSection(engine="auto"), threads)
    assert list(speeds) == ["torch", "onnx"]
    assert min(speeds.values()) > 0
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert list(engine_speeds(str(plain_bundle), InferSection(engine="auto"), threads)) == ["torch"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_step_is_timed_in_the_precision_of_training(monkeypatch, precision):
    seen = []

    def forward(model, images):
        seen.append(torch.is_autocast_enabled("cpu"))
        return forward_all(model, images)

    monkeypatch.setattr(cost, "forward_all", forward)
    monkeypatch.setattr("segray.core.precision.cpu_has", lambda *names: True)  # any CPU can, if slowly
    small = {"model.arch": "unet-plain", "model.options": {"channels": 4}, "train.batch_size": 2}
    config = load(None, small | {"train.precision": precision, "train.loss": "dice"})
    assert training_step_s(config, 3, (32, 48), "cpu") > 0
    assert set(seen) == {precision == "bf16"}
