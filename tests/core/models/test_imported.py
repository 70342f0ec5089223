"""Models of other programs become bundles that give the same logits, or a line that says what does not fit."""

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import save_file

from segray.cli import cli
from segray.config import load
from segray.core.data import streets
from segray.core.data.class_names import colored
from segray.core.infer.cost import engine_speeds, labelling_cost
from segray.core.infer.predictor import Predictor
from segray.core.models import build, bundle, coarse, forward
from segray.core.models.imported import import_model
from segray.core.models.info import read_info
from segray.errors import ConfigError, ModelError, OutputExists
from segray.sections.labelling import InferSection
from segray.sections.training import ModelSection

UNET = {"model.arch": "unet-plain", "model.options": {"channels": 4}}


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return build(ModelSection(arch="unet-plain", options={"channels": 4}), 3).eval()


def made(file, folder, classes="road,sky,car", **settings):
    network = {} if str(file).endswith(".onnx") else UNET
    return import_model(str(file), str(folder / "bundle"), load(None, network | settings), classes)


@pytest.mark.parametrize(
    ("name", "keep", "left"),
    [
        ("plain.pt", lambda state: state, ""),
        ("plain.safetensors", lambda state: state, ""),
        ("lightning.ckpt",
         lambda state: {"epoch": 3, "state_dict": {f"model.{k}": v for k, v in state.items()} | {"loss.weight": torch.ones(3)}},
         "model."),
        ("parallel.pth", lambda state: {"model": {f"module.{k}": v for k, v in state.items()}}, "module."),
        ("both.pth", lambda state: {f"net.module.{k}": v for k, v in state.items()}, "net.module."),
    ],
)  # fmt: skip
def test_a_state_dict_is_a_bundle_whatever_stands_before_its_names(unet, tmp_path, name, keep, left):
    state = keep(dict(unet.state_dict()))
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    info, notes = made(tmp_path / name, tmp_path, **{"data.size": "32x48"})
    assert (f"{left} before its names was left out" in notes) == bool(left)
    assert ("1 of the file's 119 tensors are not the model's, and are left out (such as loss.weight)" in notes) == (
        name == "lightning.ckpt"
    )
    assert (info.space.names, info.input_size, info.source) == (("road", "sky", "car"), (32, 48), {"name": name})
    image = torch.randn(1, 3, 32, 48)
    with torch.inference_mode():
        assert torch.equal(forward(bundle.load(str(tmp_path / "bundle"))[0], image), forward(unet, image))


def test_a_folder_of_smp_names_its_architecture_itself(tmp_path):
    theirs = smp.Unet("resnet18", encoder_weights=None, classes=3, decoder_channels=(32, 16, 16, 8, 8)).eval()
    theirs.save_pretrained(str(tmp_path / "theirs"))
    info, notes = import_model(str(tmp_path / "theirs"), str(tmp_path / "bundle"), load())
    assert (info.model.arch, info.model.encoder, info.space.names[2]) == ("unet", "resnet18", "class 2")
    assert notes[0].startswith("frames are resized until their shorter side is 512 px; --size HxW ")
    image = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(bundle.load(str(tmp_path / "bundle"))[0](image), theirs(image))
    with pytest.raises(ModelError) as error:
        read_info(str(tmp_path / "theirs"))
    assert str(error.value) == (
        f"{tmp_path}/theirs is not a model bundle: save_pretrained wrote it. Make one of it: segray import "
        f"{tmp_path}/theirs --out BUNDLE"
    )


def test_weights_that_do_not_fit_are_counted_with_an_example_of_each_side(unet, tmp_path):
    torch.save({f"module.{k}": v for k, v in unet.state_dict().items() if "head" not in k}, tmp_path / "some.pth")
    torch.save(unet.state_dict(), tmp_path / "three.pth")
    with pytest.raises(ModelError, match=r"^The weights do not fit unet-plain with 5 classes: of the model's 118 tensors 0 "
                       r"are not in the file; 2 have another shape \(such as .*: 3×4×1×1, the model's 5×4×1×1\); 0 of the "
                       r"file's 118 are not the model's\. Give the --arch, "):  # fmt: skip
        made(tmp_path / "three.pth", tmp_path, "5")
    with pytest.raises(
        ModelError, match=r"unet over resnet18 with 3 classes: of the model's \d+ tensors \d+ are not in "
    ):
        import_model(str(tmp_path / "three.pth"), str(tmp_path / "bundle"), load(), "3")


def test_what_is_missing_or_not_safe_is_said(unet, tmp_path):
    torch.save(unet.state_dict(), tmp_path / "a.pth")
    with pytest.raises(ConfigError, match=r"a\.pth does not name its classes: give their number, --classes 19, "):
        made(tmp_path / "a.pth", tmp_path, None)
    with pytest.raises(ConfigError, match=r"^--classes road,,car: every class needs a name of its own\.$"):
        made(tmp_path / "a.pth", tmp_path, "road,,car")
    (tmp_path / "evil.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ModelError, match=r"evil\.pth holds no weights that can be read safely: "):
        made(tmp_path / "evil.pth", tmp_path)
    torch.jit.trace(torch.nn.Conv2d(3, 3, 1), torch.zeros(1, 3, 8, 8)).save(str(tmp_path / "script.pt"))
    with pytest.raises(
        ModelError, match=r"script\.pt is TorchScript: a program from elsewhere, which is not run\. Give "
    ):
        made(tmp_path / "script.pt", tmp_path)
    (tmp_path / "bundle").mkdir()
    with pytest.raises(OutputExists, match=r"bundle is there already\. Give another --out, or --overwrite\."):
        made(tmp_path / "a.pth", tmp_path)
    with pytest.raises(ModelError) as error:
        read_info(str(tmp_path / "a.pth"))
    assert str(error.value) == (
        f"{tmp_path}/a.pth is a file of weights, and a model is a bundle. Make one of it: segray import {tmp_path}/a.pth "
        "--out BUNDLE"
    )


def test_the_command_says_what_it_decided_and_what_comes_next(unet, tmp_path, capsys):
    torch.save(unet.state_dict(), tmp_path / "a.pth")
    given = ["import", str(tmp_path / "a.pth"), "--arch", "unet-plain", "--set", "model.options={channels: 4}"]
    given += ["--classes", "road,sky,car", "--size", "32x48", "--out", str(tmp_path / "bundle")]
    cli.main(given, standalone_mode=False)
    assert " ".join(capsys.readouterr().out.split()) == (
        "Note: RGB in 0..1 is normalised by the mean 0.485, 0.456, 0.406 and the deviation 0.229, 0.224, 0.225; --set "
        f"model.mean=… and model.std=… give others. {tmp_path}/bundle is a bundle of unet-plain, 3 classes. Next: segray "
        f"label --model {tmp_path}/bundle --input FRAMES"
    )


def onnx_file(folder, *, kind="logits", last=False, size=("h", "w"), batch="b", classes=3):
    """A convolution over 3 classes, written by hand: it takes any size, and gives every half pixel."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).standard_normal((classes, 3, 2, 2)).astype(np.float32)
    shape = [batch, *size, 3] if last else [batch, 3, *size]
    nodes, seen = [], "image"
    if last:
        nodes.append(helper.make_node("Transpose", ["image"], ["first"], perm=[0, 3, 1, 2]))
        seen = "first"
    nodes.append(helper.make_node("Conv", [seen, "weight"], ["logits"], strides=[2, 2]))
    if kind == "ids":
        nodes.append(helper.make_node("ArgMax", ["logits"], ["ids"], axis=1, keepdims=0))
    if kind == "probabilities":
        nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    number = TensorProto.INT64 if kind == "ids" else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(kind, number, None)],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "net.onnx")
    return torch.from_numpy(weight)


@pytest.mark.parametrize("more", [{}, {"last": True}, {"size": (32, 48), "batch": 1}, {"kind": "probabilities"}])
def test_an_onnx_file_runs_behind_the_predictor(tmp_path, more):
    weight = onnx_file(tmp_path, **more)
    settings = {} if "size" in more else {"data.size": "32x48"}
    info, notes = made(tmp_path / "net.onnx", tmp_path, **settings)
    assert f"its output {more.get('kind', 'logits')} holds {more.get('kind', 'logits')}" in notes
    assert (info.input_size, info.resize) == ((32, 48), "stretch")
    model, _ = bundle.load(str(tmp_path / "bundle"))
    images = torch.randn(2, 3, 32, 48)
    wanted = torch.nn.functional.conv2d(images, weight, stride=2)
    wanted = wanted.log_softmax(1) if "kind" in more else wanted
    with torch.inference_mode():
        assert torch.allclose(coarse(model, images), wanted, atol=1e-5)
        assert forward(model, images).shape == (2, 3, 32, 48)
    frames = [streets.draw(i, (50, 70)).image_hwc for i in range(2)]
    found = [
        predictor.predict([predictor.prepare(frame) for frame in frames], [(50, 70)] * 2)
        for predictor in (Predictor(str(tmp_path / "bundle"), infer=InferSection(engine=e)) for e in ("torch", "onnx"))
    ]
    assert all(np.array_equal(a.mask_hw, b.mask_hw) for a, b in zip(*found, strict=True))
    assert bundle.count_parameters(str(tmp_path / "bundle")) == 0
    assert [*engine_speeds(str(tmp_path / "bundle"), InferSection(), 1)] == ["torch"]
    cost = labelling_cost(str(tmp_path / "bundle"), "cpu", 1)
    assert (cost.gmacs, cost.parameters, cost.images_per_s > 0) == (None, None, True)


def test_ids_of_an_onnx_file_are_labels_and_a_file_of_any_size_has_sides_of_32(tmp_path):
    weight = onnx_file(tmp_path, kind="ids")
    info, notes = made(tmp_path / "net.onnx", tmp_path)
    assert (info.input_size, info.resize, info.multiple_of) == ((512, 512), "short_side", 32)
    assert notes[1] == "its output ids holds ids"
    images = torch.randn(1, 3, 32, 48)
    with torch.inference_mode():
        ids = coarse(bundle.load(str(tmp_path / "bundle"))[0], images).argmax(1)
    assert torch.equal(ids, torch.nn.functional.conv2d(images, weight, stride=2).argmax(1))
    made(tmp_path / "net.onnx", tmp_path / "two", "road,sky")
    with pytest.raises(
        ModelError, match=r"^The ONNX file gave class id 2, and its bundle has 2 classes; import it again "
    ):
        bundle.load(str(tmp_path / "two" / "bundle"))[0](images)


def test_an_onnx_file_that_cannot_be_used_is_a_line(tmp_path):
    import onnx

    onnx_file(tmp_path)
    with pytest.raises(ModelError, match=r"net\.onnx is not used: It gives logits \[1, 3, 256, 256\] of float32; logits "
                       r"have one channel for each of the 5 classes in --classes, and ids are whole numbers "):  # fmt: skip
        made(tmp_path / "net.onnx", tmp_path, "5")
    model = onnx.load(tmp_path / "net.onnx")
    onnx.save(model, tmp_path / "apart.onnx", save_as_external_data=True, size_threshold=0)
    with pytest.raises(ModelError, match=r"apart\.onnx is not used: Its weights are in other files; save it as one: "):
        made(tmp_path / "apart.onnx", tmp_path)
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ModelError, match=r"text\.onnx is not used: It is no ONNX file\."):
        made(tmp_path / "text.onnx", tmp_path)
    onnx_file(tmp_path, size=(32, 48))
    with pytest.raises(ConfigError, match=r"^The file takes frames of 32×48 alone; leave --size out\.$"):
        made(tmp_path / "net.onnx", tmp_path, **{"data.size": "64x64"})


def one_class(folder, kind):
    """A model of one class in a file of some kind, and a function of an image that is above 0 where the class is."""
    torch.manual_seed(0)
    if kind == "onnx":
        weight = onnx_file(folder, classes=1, size=(32, 64), batch=1)
        return folder / "net.onnx", lambda image: torch.nn.functional.conv2d(image, weight, stride=2)
    model = smp.Unet("resnet18", encoder_weights=None, classes=1, activation="sigmoid").eval()
    torch.save(model.state_dict(), folder / "one.pth")
    model.save_pretrained(str(folder / "smp"))
    return folder / ("smp" if kind == "smp" else "one.pth"), lambda image: model(image) - 0.5  # which is a sigmoid


@pytest.mark.parametrize("kind", ["onnx", "smp", "state"])
@pytest.mark.parametrize("classes", ["road", "background,road", "1"])
def test_one_output_is_the_logit_of_a_class_before_its_background(tmp_path, kind, classes):
    file, logit = one_class(tmp_path, kind)
    info, notes = import_model(str(file), str(tmp_path / "bundle"), load(None, {"data.size": "32x64"}), classes)
    assert info.space.names == ("background", "foreground" if classes == "1" else "road")
    name = info.space.names[1]
    assert f"one output tells {name} from background: a pixel is {name} where its logit is above 0" in notes or (
        kind == "onnx" and classes == "background,road"
    )
    image = torch.randn(1, 3, 32, 64)
    with torch.inference_mode():
        given, wanted = coarse(bundle.load(str(tmp_path / "bundle"))[0], image), logit(image)
    assert torch.equal(given.argmax(1), (wanted[:, 0] > 0).long())
    assert 0 < given.argmax(1).float().mean() < 1


def test_a_listed_class_keeps_its_colour_beside_the_background(tmp_path):
    (tmp_path / "classes.csv").write_text("name,r,g,b\ncrack,1,2,3\n")
    file, _ = one_class(tmp_path, "onnx")
    info, _ = import_model(str(file), str(tmp_path / "bundle"), load(), str(tmp_path / "classes.csv"))
    assert (info.space.names, info.space.colors[1]) == (("background", "crack"), (1, 2, 3))


def test_classes_whose_ids_contradict_their_lines_are_refused(unet, tmp_path):
    torch.save(unet.state_dict(), tmp_path / "unet.pt")
    (tmp_path / "classes.csv").write_text("name,id\ncar,2\nroad,0\nsky,1\n")
    with pytest.raises(ConfigError, match=r"classes\.csv has ids in another order than its lines"):
        made(tmp_path / "unet.pt", tmp_path, str(tmp_path / "classes.csv"))
    (tmp_path / "classes.csv").write_text("name,id\nroad,7\nsky,8\nvoid,9\ncar,11\n")
    assert made(tmp_path / "unet.pt", tmp_path, str(tmp_path / "classes.csv")).info.space.names == (
        "road",
        "sky",
        "car",
    )


def test_a_folder_of_smp_for_other_images_than_rgb_is_a_line(tmp_path):
    smp.Unet("resnet18", encoder_weights=None, in_channels=1).save_pretrained(str(tmp_path / "grey"))
    with pytest.raises(ModelError, match=r"^smp's in_channels is 1, and a model takes RGB\. Export it to ONNX behind "):
        import_model(str(tmp_path / "grey"), str(tmp_path / "bundle"), load())


CITY = ["road", "lane", "sky"]


def test_a_checkpoint_of_mmsegmentation_names_its_classes_unless_the_network_is_its_own(unet, tmp_path):
    for name, meta in {
        "old.pth": {"CLASSES": tuple(CITY), "PALETTE": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]},
        "new.pth": {"dataset_meta": {"classes": CITY, "palette": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]}},
    }.items():
        torch.save({"meta": meta, "state_dict": unet.state_dict()}, tmp_path / name)
        info, notes = made(tmp_path / name, tmp_path / name[:3], None)
        assert (info.space.names, info.space.colors[1]) == (tuple(CITY), (4, 5, 6))
    for i, palette in enumerate(([[1, 2]] * 3, [[0.1, 0.2, 0.3]] * 3, torch.ones(3, 3), [1, 2, 3], "cityscapes")):
        meta = {"CLASSES": CITY, "PALETTE": palette, "dataset_meta": "none"}
        torch.save({"meta": meta, "state_dict": unet.state_dict()}, tmp_path / "odd.pth")
        info, _ = made(tmp_path / "odd.pth", tmp_path / f"odd{i}", None)
        assert info.space.colors == colored(CITY)
        assert "classes are those that its meta names" in notes
    own = {"backbone.stem.weight": torch.ones(1), "decode_head.conv_seg.weight": torch.ones(1)}
    torch.save({"meta": {}, "state_dict": own}, tmp_path / "own.pth")
    with pytest.raises(
        ModelError, match=r"own\.pth is of a network of mmsegmentation's own \(backbone, decode_head\), "
    ):
        made(tmp_path / "own.pth", tmp_path, None)


def test_a_state_dict_is_found_under_any_name_where_it_is_the_only_one(unet, tmp_path):
    state = unet.state_dict()
    torch.save({"net": state, "epoch": 3, "optimizer": {"state": {}, "param_groups": [{"lr": 1.0}]}}, tmp_path / "a.pt")
    assert made(tmp_path / "a.pt", tmp_path).info.space.num_classes == 3
    torch.save({"net": state, "ema": state}, tmp_path / "b.pt")
    with pytest.raises(
        ModelError, match=r"b\.pt holds several state dicts: net, ema\. Save one of them alone: torch\.save"
    ):
        made(tmp_path / "b.pt", tmp_path / "two")
    torch.save({"epoch": 3}, tmp_path / "c.pt")
    with pytest.raises(
        ModelError, match=r"c\.pt holds dict with epoch, not a state dict of tensors\. Save its tensors "
    ):
        made(tmp_path / "c.pt", tmp_path / "two")


def test_of_a_model_and_its_average_none_is_taken_without_a_word(unet, tmp_path):
    state = unet.state_dict()
    both = {f"{prefix}.{key}": value for prefix in ("teacher", "model") for key, value in state.items()}
    torch.save({"state_dict": both}, tmp_path / "both.ckpt")
    with pytest.raises(
        ModelError, match=r"^The file holds the model several times: its names stand behind teacher\., model\.\. Save "
    ):
        made(tmp_path / "both.ckpt", tmp_path)
    torch.save({"state_dict": state, "state_dict_ema": state | {"head.bias": torch.ones(3)}}, tmp_path / "ema.pth")
    _, notes = made(tmp_path / "ema.pth", tmp_path)
    assert "state_dict_ema of the file is left out; save it alone to import it instead" in notes
    torch.save(state | {f"ema.{key}": value for key, value in state.items()}, tmp_path / "plain.pth")
    _, notes = made(tmp_path / "plain.pth", tmp_path / "plain")
    assert (
        notes[0] == "118 of the file's 236 tensors are not the model's, and are left out (such as ema.down.0.0.weight)"
    )


def test_a_pickled_model_and_a_file_that_was_cut_are_told_apart(unet, tmp_path):
    torch.save(unet, tmp_path / "whole.pth")
    with pytest.raises(ModelError, match=r"whole\.pth holds no weights that can be read safely: it has an object of segray\."
                       r"core\.models\.unet_plain\.\w+ beside or around its tensors, which could run code\. Save "):  # fmt: skip
        made(tmp_path / "whole.pth", tmp_path)
    torch.save(unet.state_dict(), tmp_path / "a.pth")
    save_file(unet.state_dict(), tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / f"cut-{name}").write_bytes((tmp_path / name).read_bytes()[:3000])
        with pytest.raises(ModelError, match=rf"cut-{name} is no whole file of weights \(.*\)\. Copy it again\.$"):
            made(tmp_path / f"cut-{name}", tmp_path)


def test_what_lies_around_a_model_leads_to_it(unet, tmp_path):
    smp.Unet("resnet18", encoder_weights=None, classes=3).save_pretrained(str(tmp_path / "all" / "my net"))
    inside = tmp_path / "all" / "my net" / "model.safetensors"
    info, _ = import_model(str(inside), str(tmp_path / "bundle"), load())
    assert (info.model.encoder, info.space.num_classes) == ("resnet18", 3)
    with pytest.raises(
        ModelError, match=r"/bundle is a bundle already, which every command takes: segray label --model "
    ):
        import_model(str(tmp_path / "bundle"), str(tmp_path / "again"), load())
    with pytest.raises(ModelError, match=rf" In it are {tmp_path}/all/my net\.$"):
        import_model(str(tmp_path / "all"), str(tmp_path / "again"), load())
    with pytest.raises(ModelError, match=rf"it has no segray\.json\. In it are {tmp_path}/all/my net: give one, or "):
        read_info(str(tmp_path / "all"))
    with pytest.raises(ModelError, match=rf"Make one of it: segray import '{tmp_path}/all/my net' --out BUNDLE$"):
        read_info(str(tmp_path / "all" / "my net"))
    with pytest.raises(ModelError, match=r"^deeplabv3 does not exist\. Did you mean the ready model deeplabv3-coco\?"):
        import_model("deeplabv3", str(tmp_path / "again"), load())
    with pytest.raises(
        ModelError, match=r"^nvidia/segformer does not exist\. Give .*, or hf:OWNER/NAME for a model of "
    ):
        import_model("nvidia/segformer", str(tmp_path / "again"), load())
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(
        ModelError, match=r"a\.zip is a zip; unpack it, and give the folder or the file of weights in it"
    ):
        import_model(str(tmp_path / "a.zip"), str(tmp_path / "again"), load())


def test_a_file_that_segray_exported_says_all_itself(unet, tmp_path):
    onnx_file(tmp_path)
    import onnx

    from segray.core.models.onnx_file import facts

    torch.save(unet.state_dict(), tmp_path / "a.pth")
    info, _ = made(tmp_path / "a.pth", tmp_path, **{"data.size": "32x48", "data.resize": "keep"})
    model = onnx.load(tmp_path / "net.onnx")
    for key, value in facts(info).items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, tmp_path / "net.onnx")
    again, notes = import_model(str(tmp_path / "net.onnx"), str(tmp_path / "again"), load())
    assert (again.space, again.input_size, again.resize) == (info.space, (32, 48), "keep")
    assert (again.mean, again.std) == ((0, 0, 0), (1 / 255,) * 3)  # it normalises inside, pixels in 0..255
    assert notes[-1] == "size, normalisation and classes are those that segray export wrote into it"
    with pytest.raises(ConfigError, match=r"^--classes names 5 classes, and the model has 3\.$"):
        import_model(str(tmp_path / "net.onnx"), str(tmp_path / "other"), load(), "5")
    with pytest.raises(
        ConfigError, match=r"^data\.size would change nothing: .*net\.onnx says itself what it is; leave "
    ):
        import_model(str(tmp_path / "net.onnx"), str(tmp_path / "other"), load(None, {"data.size": "64x64"}))


@pytest.mark.slow
def test_an_exported_file_of_one_size_says_that_frames_are_stretched_to_it(unet, tmp_path):
    """It cannot take them with a shorter side of that size, as the bundle does."""
    pytest.importorskip("onnxscript")
    from segray.core.models import onnx_file as exporter

    torch.save(unet.state_dict(), tmp_path / "a.pth")
    info, _ = made(tmp_path / "a.pth", tmp_path)
    info = info.model_copy(update={"input_size": (32, 32), "longest_px": 90})
    data = exporter._export(exporter.Whole(unet, info), info, dynamic=False)
    (tmp_path / "a.onnx").write_bytes(data)
    again, _ = import_model(str(tmp_path / "a.onnx"), str(tmp_path / "again"), load())
    assert (again.input_size, again.resize, again.longest_px) == ((32, 32), "stretch", None)
    predictor = Predictor(str(tmp_path / "again"))
    frame = streets.draw(1, (50, 70)).image_hwc
    assert predictor.predict([predictor.prepare(frame)], [(50, 70)])[0].mask_hw.shape == (50, 70)


@pytest.mark.parametrize("kind", ["ready", "smp", "onnx", "state"])
def test_a_setting_that_would_change_nothing_is_refused(unet, tmp_path, kind):
    if kind == "smp":
        smp.Unet("resnet18", encoder_weights=None, classes=3).save_pretrained(str(tmp_path / "net"))
    onnx_file(tmp_path)
    torch.save(unet.state_dict(), tmp_path / "net.pth")
    file = {"ready": "deeplabv3-coco", "smp": tmp_path / "net", "onnx": tmp_path / "net.onnx"}.get(
        kind, tmp_path / "net.pth"
    )
    settings = {"ready": "data.size=64x64", "smp": "model.one_logit=true", "onnx": "model.arch=unet"}.get(
        kind, "model.encoder_weights=imagenet"
    )
    key, value = settings.split("=")
    with pytest.raises(ConfigError) as error:
        import_model(str(file), str(tmp_path / "bundle"), load(None, {key: value}), None if kind == "ready" else "3")
    assert str(error.value) == f"{key} would change nothing: {file} says itself what it is; leave it out."


def test_frames_are_padded_only_to_a_size_and_pixels_are_in_0_to_1(unet, tmp_path):
    torch.save(unet.state_dict(), tmp_path / "a.pth")
    with pytest.raises(
        ConfigError, match=r"^data\.resize keep needs the size of the frames as in training: --size HxW\.$"
    ):
        made(tmp_path / "a.pth", tmp_path, **{"data.resize": "keep"})
    with pytest.raises(
        ConfigError, match=r"^model\.mean is of RGB in 0\.\.1, and 123\.675 is above 1; of 255 it is \[0\.485, "
    ):
        made(tmp_path / "a.pth", tmp_path, **{"model.mean": [123.675, 116.28, 103.53]})
    _, notes = made(tmp_path / "a.pth", tmp_path, **{"data.size": "32x48", "model.mean": [0.5, 0.5, 0.5]})
    assert notes[0].startswith("RGB in 0..1 is normalised by the mean 0.5, 0.5, 0.5 and the deviation 0.229, 0.224, ")


def test_only_a_bundle_is_overwritten(unet, tmp_path):
    torch.save(unet.state_dict(), tmp_path / "a.pth")
    config = load(None, UNET)
    (tmp_path / "mine").mkdir()
    import_model(str(tmp_path / "a.pth"), str(tmp_path / "mine"), config, "3", overwrite=True)
    import_model(str(tmp_path / "a.pth"), str(tmp_path / "mine"), config, "road,sky,car", overwrite=True)
    for out in (tmp_path, tmp_path / "a.pth"):
        with pytest.raises(OutputExists) as error:
            import_model(str(tmp_path / "a.pth"), str(out), config, "3", overwrite=True)
        assert str(error.value) == (
            f"{out} is no bundle, and --overwrite would delete what it holds. Give another --out."
        )


def test_weights_of_a_run_that_diverged_are_refused(unet, tmp_path):
    torch.save({key: value / 0 - value / 0 for key, value in unet.state_dict().items()}, tmp_path / "a.pth")
    with pytest.raises(ModelError, match=r"a\.pth holds nan in 118 tensors \(such as down\.0\.0\.weight\), as of a "):
        made(tmp_path / "a.pth", tmp_path)


def test_a_file_of_one_size_says_so_of_frames_of_others_as_a_student_has_them(tmp_path):
    onnx_file(tmp_path, size=(32, 48), batch=1)
    made(tmp_path / "net.onnx", tmp_path)
    with pytest.raises(
        ModelError, match=r"^The ONNX file does not take frames of 64×48 \(height × width\): .*Expected: 32"
    ):
        bundle.load(str(tmp_path / "bundle"))[0](torch.zeros(1, 3, 64, 48))
    with pytest.raises(
        ModelError, match=r"^net \(onnx\) does not run with this window or these scales \(The ONNX file does"
    ):
        Predictor(str(tmp_path / "bundle"), infer=InferSection(scales=[0.5, 1.0]))
    predictor = Predictor(str(tmp_path / "bundle"), infer=InferSection(window=(32, 48)))
    small = streets.draw(1, (30, 40)).image_hwc
    assert predictor.predict([small], [(30, 40)])[0].mask_hw.shape == (30, 40)


@pytest.mark.parametrize("frames", [1, 3])
def test_a_file_that_takes_batches_of_one_size_gets_them(tmp_path, frames):
    weight = onnx_file(tmp_path, size=(32, 48), batch=2)
    made(tmp_path / "net.onnx", tmp_path)
    images = torch.randn(frames, 3, 32, 48)
    with torch.inference_mode():
        found = coarse(bundle.load(str(tmp_path / "bundle"))[0], images)
    assert torch.allclose(found, torch.nn.functional.conv2d(images, weight, stride=2), atol=1e-5)
