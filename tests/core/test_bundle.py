import json
import shutil

import pytest
import segmentation_models_pytorch as smp
import torch

from segray.core import storage
from segray.core.models import bundle
from segray.errors import ModelError


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
        ({"label_space": {"names": ["a", "b"]}}, "does not fit unet over resnet18 with 2 classes"),
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
        f"{copy} is not a model bundle: it has no segray.json. Give the folder best/ of a finished run."
    )
    (copy / "segray.json").write_text("{}")
    with pytest.raises(ModelError, match=r"segray.json is not valid: "):
        bundle.load(str(copy))


def test_the_model_id_follows_preprocessing_and_is_stable(tiny_bundle, tmp_path):
    model, info = bundle.load(str(tiny_bundle))
    assert bundle.save(tmp_path / "same", model, info).model_id == info.model_id
    other = info.model_copy(update={"input_size": (64, 64)})
    assert bundle.save(tmp_path / "other", model, other).model_id != info.model_id


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
    monkeypatch.setattr(bundle, "_model_id", lambda info: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bundle.save(copy, model, info)
    assert bundle.load(str(copy))[1] == info
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]
