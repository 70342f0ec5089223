import json
import os
import shutil

import pytest
import segmentation_models_pytorch as smp
import torch

from segray.core.io import storage
from segray.core.models import build, bundle, fold, forward
from segray.core.models.fold import fold_batch_norm
from segray.core.models.info import BundleInfo, read_info
from segray.core.samples import LabelSpace
from segray.errors import ModelError
from segray.sections.training import ModelSection

TWO = LabelSpace(("a", "b"), ((0, 0, 0), (9, 9, 9))).to_dict()


def test_smp_loads_the_bundle_and_gives_the_same_logits(tiny_bundle):
    model, info = bundle.load(str(tiny_bundle))
    theirs = smp.from_pretrained(str(tiny_bundle)).eval()
    image = torch.randn(1, 3, 32, 64)
    with torch.inference_mode():
        assert torch.equal(model(image), theirs(image))
    assert info.input_size == (32, 48)


@pytest.fixture
def copy(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle, tmp_path / "copy")


def test_one_flipped_bit_in_the_weights_is_refused(copy):
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError) as error:
        bundle.load(str(copy))
    assert str(error.value) == (
        f"{copy}/model.safetensors is not the file that was saved (sha256 differs); copy the bundle again."
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": {"arch": "fpn", "encoder": "mobilenet_v2"}}, "does not fit fpn over mobilenet_v2 with {n} classes"),
        ({"label_space": TWO}, "does not fit unet over resnet18 with 2 classes"),
    ],
)
def test_weights_of_another_architecture_or_other_classes_are_refused(copy, change, text):
    told = json.loads((copy / "segray.json").read_text())
    (copy / "segray.json").write_text(json.dumps(told | change))
    with pytest.raises(ModelError) as error:
        bundle.load(str(copy))
    text = text.format(n=len(told["label_space"]["names"]))
    assert str(error.value).startswith(f"{copy}/model.safetensors {text}, as segray.json says: ")
    assert "\n" not in str(error.value)


def test_other_folders_are_no_bundle(copy):
    (copy / "segray.json").unlink()
    with pytest.raises(ModelError) as error:
        bundle.load(str(copy))
    assert str(error.value) == (
        f"{copy} is not a model bundle: save_pretrained wrote it. Make one of it: segray import {copy} --out BUNDLE"
    )
    (copy / "segray.json").write_text("{}")
    with pytest.raises(ModelError, match=r"segray.json is not valid: model: Field required\.$"):
        bundle.load(str(copy))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"schema_version": 2}, "schema_version: Input should be 1."),
        ({"model": {"arch": "unet", "novel": 1}}, "model.novel: Extra inputs are not permitted."),
        ({"label_space": {}}, "label_space: names is missing."),
        ({"label_space": TWO | {"colors": [[0, 0, 0]]}}, "label_space: 2 class names but 1 colours; give one each."),
        ({"label_space": TWO | {"colors": [1, 2]}}, "label_space: cannot unpack non-iterable int object."),
        ({"std": [0, 1, 1]}, "std: Value error, give numbers above 0."),
        ({"multiple_of": 0}, "multiple_of: Input should be greater than or equal to 1."),
    ],
)
def test_a_bundle_of_another_version_or_with_a_damaged_description_is_a_line(copy, change, text):
    told = json.loads((copy / "segray.json").read_text())
    (copy / "segray.json").write_text(json.dumps(told | change))
    with pytest.raises(ModelError) as error:
        bundle.load(str(copy))
    assert str(error.value) == f"{copy}: segray.json is not valid: {text}"


def test_weights_that_are_no_numbers_are_refused(copy):
    model, info = bundle.load(str(copy))
    model.segmentation_head[0].bias.data[1] = torch.nan
    bundle.save(copy, model, info)
    with pytest.raises(ModelError) as error:
        bundle.load(str(copy))
    assert str(error.value) == (
        f"{copy}/model.safetensors holds nan in 1 tensor (such as segmentation_head.0.bias), as of a training run that "
        "diverged, and would give every pixel the same class. Give an earlier checkpoint."
    )


def test_the_model_id_follows_preprocessing_and_is_stable(tiny_bundle, tmp_path):
    model, info = bundle.load(str(tiny_bundle))
    assert bundle.save(tmp_path / "same", model, info).model_id == info.model_id
    other = info.model_copy(update={"input_size": (64, 64)})
    assert bundle.save(tmp_path / "other", model, other).model_id != info.model_id


def test_the_same_weights_in_another_network_have_another_model_id(tmp_path):
    """Two output strides of a DeepLab give other logits by the same weights."""
    space = {"label_space": TWO, "input_size": (64, 64)}
    strided = [
        ModelSection(arch="deeplabv3plus", encoder="resnet18", options=options)
        for options in ({}, {"encoder_output_stride": 8}, {"encoder_output_stride": 16})
    ]
    model = build(strided[0], 2)
    ids = {bundle.save(tmp_path / "one", model, BundleInfo(model=one, **space)).model_id for one in strided}
    assert len(ids) == 3


def test_parameters_are_counted_from_the_file(tiny_bundle):
    model, _ = bundle.load(str(tiny_bundle))
    assert bundle.count_parameters(str(tiny_bundle)) == sum(p.numel() for p in model.state_dict().values())


def test_a_bundle_on_s3_is_the_same_model(tiny_bundle, s3, tmp_path):
    there = f"{s3}/{tmp_path.name}/best"
    for file in tiny_bundle.iterdir():
        storage.create(f"{there}/{file.name}", file.read_bytes())
    (theirs, info), (model, ours) = bundle.load(there), bundle.load(str(tiny_bundle))
    assert info == ours
    image = torch.randn(1, 3, 32, 64)
    with torch.inference_mode():
        assert torch.equal(theirs(image), model(image))


def test_a_save_that_fails_keeps_the_bundle_that_was_there(copy, monkeypatch):
    model, info = bundle.load(str(copy))
    monkeypatch.setattr(bundle, "model_id_of", lambda info: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bundle.save(copy, model, info)
    assert bundle.load(str(copy))[1] == info
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def with_statistics(model):
    """Batch norms that do something, as after training."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


def norms(model):
    return sum(type(module) is torch.nn.BatchNorm2d for module in model.modules())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "encoder", "left"),
    [
        ("unet", "resnet18", 0),
        ("unet", "mobilenet_v2", 0),
        ("unet", "densenet121", 62),  # norms before the convolution, and after joins
        ("deeplabv3plus", "resnet18", 0),
        ("segformer", "mit_b0", 0),
        ("linknet", "resnet18", 5),  # transposed convolutions
        ("danet", "resnet18", 0),
        ("unet-plain", "none", 0),
    ],
)
def test_folded_batch_norms_give_the_same_logits(arch, encoder, left):
    torch.manual_seed(0)
    options = {"channels": 8} if arch == "unet-plain" else {}
    model = with_statistics(build(ModelSection(arch=arch, encoder=encoder, options=options), 11))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    folded = fold_batch_norm(model)
    image = torch.randn(1, 3, 96, 128)
    with torch.inference_mode():
        ours, theirs = forward(folded, image), forward(model, image)
    assert (ours - theirs).abs().max() < 1e-4 * (theirs.max() - theirs.min())
    assert (ours.argmax(1) == theirs.argmax(1)).float().mean() > 0.999
    assert norms(folded) == left
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


class Shared(torch.nn.Module):
    """One convolution before two norms, one used twice, one whose output is added, and one that can be folded."""

    def __init__(self):
        super().__init__()
        self.convs = torch.nn.ModuleList(torch.nn.Conv2d(3, 3, 1) for _ in range(4))
        self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(3) for _ in range(5))

    def forward(self, x):
        x = self.convs[0](x)
        x = self.norms[0](x) * self.norms[1](x)
        x = self.norms[2](self.convs[1](self.convs[1](x)))
        x = self.convs[2](x)
        x = x + self.norms[3](x)
        return self.norms[4](self.convs[3](x))


def test_only_a_norm_that_is_alone_behind_its_convolution_is_folded():
    model = with_statistics(Shared())
    folded = fold_batch_norm(model)
    assert [type(norm).__name__ for norm in folded.norms] == ["BatchNorm2d"] * 4 + ["Identity"]


def test_a_fold_that_changes_logits_is_not_used(monkeypatch):
    model = with_statistics(Shared())
    monkeypatch.setattr(fold, "fuse_conv_bn_eval", lambda conv, norm: torch.nn.Conv2d(3, 3, 1))
    assert fold_batch_norm(model) is model


class OneSize(torch.nn.Sequential):
    def forward(self, images):
        if images.shape[-2:] != (32, 32):
            raise RuntimeError("The size of tensor a must match the size of tensor b")
        return super().forward(images)


def test_a_model_of_one_size_is_not_folded():
    model = with_statistics(OneSize(torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3)))
    assert fold_batch_norm(model) is model


def test_a_temperature_is_another_model_id_and_the_same_weights(copy):
    before = read_info(str(copy))
    after = bundle.set_temperature(str(copy), 1.5, {"split": "val"})
    model, info = bundle.load(str(copy))
    assert info == after
    assert (info.temperature, info.calibration) == (1.5, {"split": "val"})
    assert info.model_id != before.model_id
    assert bundle.save(copy, model, info).model_id == info.model_id
    assert bundle.set_temperature(str(copy), 1.0, {}).model_id == before.model_id


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("runs/street", "{}/runs/street is a folder above the bundle: the bundle is {}/runs/street/best."),
        (
            "runs",
            "{0}/runs is a folder above the bundle: the bundles in it are {0}/runs/camvid/best, {0}/runs/street/best.",
        ),
        ("runs/streat/best", "{}/runs/streat/best does not exist. Did you mean {}/runs/street/best?"),
        ("runs/streat", "{}/runs/streat does not exist. Did you mean {}/runs/street/best?"),
        ("rons/street", "{}/rons/street does not exist. Did you mean {}/runs/street/best?"),
        (
            "runs/street/best/REAME.md",
            "{0}/runs/street/best/REAME.md does not exist. Did you mean {0}/runs/street/best/README.md?",
        ),
        ("deeplabv3", "{}/deeplabv3 does not exist. Did you mean the ready model deeplabv3-coco?"),
        (
            "nothing",
            "{}/nothing does not exist. Give the folder best/ of a finished run, a ready model of `segray models`, or "
            "hf:OWNER/NAME for a model of the Hugging Face Hub.",
        ),
        (
            "runs/street/best/README.md",
            "{}/runs/street/best/README.md is a file, and a model is a folder: give the folder best/ of a finished run.",
        ),
    ],
)
def test_a_place_that_is_no_bundle_is_said_with_the_one_that_is_meant(tiny_bundle, tmp_path, given, said):
    for run in ("street", "camvid"):
        shutil.copytree(tiny_bundle, tmp_path / "runs" / run / "best", copy_function=os.symlink)
    with pytest.raises(ModelError) as error:
        read_info(f"{tmp_path}/{given}")
    assert str(error.value) == said.replace("{0}", "{}").format(*[tmp_path] * said.count("{"))


def test_a_run_on_s3_is_said_with_its_bundle(s3):
    storage.create(f"{s3}/a run/best/segray.json", b"{}")
    with pytest.raises(ModelError) as error:
        read_info(f"{s3}/a run")
    assert str(error.value) == f"{s3}/a run is a folder above the bundle: the bundle is {s3}/a run/best."
