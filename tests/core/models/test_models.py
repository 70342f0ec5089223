"""Every architecture keeps the one contract; our own do what their papers say."""

import json
import re
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from segmentation_models_pytorch.encoders import encoders as smp_encoders
from torch.nn import functional
from torchvision.models import segmentation

from segray.core.data import cityscapes, voc
from segray.core.models import (
    ARCHITECTURES,
    build,
    bundle,
    encoder_of,
    encoder_weights,
    forward,
    forward_all,
    has_imagenet,
    load_encoder,
    preprocessing,
    ready,
)
from segray.core.models.danet import ChannelAttention, PositionAttention
from segray.core.models.info import BundleInfo
from segray.core.models.listing import cost, list_models, read_costs
from segray.core.models.unet_plain import UNet
from segray.errors import ModelError
from segray.sections.training import ModelSection
from segray.sections.values import READY_MODELS

DPT = {"decoder_fusion_channels": 16, "decoder_intermediate_channels": (16, 16, 16, 16)}
SIZES = [(64, 32), (1, 1), (90, 120)]
NARROW = {"options": {"decoder_channels": (32, 16, 16, 8, 8)}}
SMALL = {
    "unet": NARROW,
    "unetplusplus": NARROW,
    "manet": NARROW,
    "dpt": {"encoder": "tu-vit_tiny_patch16_224", "options": DPT},
    "deeplabv3-torchvision": {"encoder": "mobilenet_v3_large"},
    "unet-plain": {"options": {"channels": 8}},
    "segformer": {"encoder": "mit_b0"},
}


def section(arch, **more):
    return ModelSection(arch=arch, **({"encoder": "mobilenet_v2"} | SMALL.get(arch, {}) | more))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request):
    torch.manual_seed(0)
    return build(section(request.param), 3)


@pytest.mark.parametrize("size", [(33, 47), *(pytest.param(size, marks=pytest.mark.long) for size in SIZES)])
def test_every_size_goes_through_every_architecture(model, size):
    with torch.inference_mode():
        assert forward(model.eval(), torch.randn(1, 3, *size)).shape == (1, 3, *size)


@pytest.mark.slow
def test_every_architecture_learns_and_its_auxiliary_outputs_too(model):
    model.train()
    outputs = forward_all(model, torch.randn(2, 3, 64, 64))
    assert all(output.shape == (2, 3, 64, 64) for output in outputs)
    sum(output.square().mean() for output in outputs).backward()
    assert encoder_of(model) is None or any(p.grad is not None for p in encoder_of(model).parameters())


@pytest.mark.slow
def test_a_bundle_gives_back_every_architecture(model, request, tmp_path):
    arch, model = request.node.callspec.params["model"], model.eval()
    space = {"names": ["a", "b", "c"], "colors": [[0, 0, 0]] * 3, "id_map": {"0": 0}, "ignore_index": 255}
    bundle.save(tmp_path / "best", model, BundleInfo(model=section(arch), label_space=space, input_size=(64, 64)))
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(forward(bundle.load(str(tmp_path / "best"))[0], image), forward(model, image))


@pytest.mark.slow
@pytest.mark.parametrize(
    "encoder",
    [
        "resnext50_32x4d",
        pytest.param("vgg19_bn", marks=pytest.mark.slow),
        "efficientnet-b3",
        "densenet121",
        "mobileone_s0",
        "tu-convnext_atto",
    ],
)
def test_encoders_of_other_families_go_under_a_u_net_and_danet(encoder):
    for arch in ("unet", "danet"):
        model = build(ModelSection(arch=arch, encoder=encoder), 2).eval()
        with torch.inference_mode():
            assert forward(model, torch.randn(1, 3, 40, 56)).shape == (1, 2, 40, 56)


SHALLOW = {"embed_dim": 32, "num_heads": 2}
NARROW_CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 32), "decoder_channels": 16}


@pytest.mark.parametrize(
    ("arch", "encoder", "options"),
    [
        ("dpt", "tu-vit_small_patch16_dinov3", DPT | SHALLOW),
        ("upernet", "tu-convnext_tiny.dinov3_lvd1689m", NARROW_CONVNEXT),
        (
            "upernet",
            "tu-swin_tiny_patch4_window7_224",
            {"depths": (1, 1, 1, 1), "embed_dim": 12, "decoder_channels": 16},
        ),
        ("unet", "tu-swinv2_tiny_window8_256", NARROW["options"] | {"depths": (1, 1, 1, 1), "embed_dim": 12}),
    ],
)
def test_encoders_of_timm_that_are_trained_today_take_frames_of_any_size(arch, encoder, options):
    model = build(ModelSection(arch=arch, encoder=encoder, options=options), 2).eval()
    for size in ((180, 240), (64, 96)):
        with torch.inference_mode():
            assert forward(model, torch.randn(1, 3, *size)).shape == (1, 2, *size)


def test_a_size_that_an_encoder_has_no_positions_for_is_a_line():
    """As of CoAtNet, whose layers add a table of relative positions."""

    class Positions(torch.nn.Module):
        def forward(self, images):
            return images + torch.zeros(1, 3, 224, 224)

    with pytest.raises(
        ModelError, match=r"^The model does not take frames of 192×256 pixels .*; give another --size\. \(The "
    ):
        forward(Positions(), torch.randn(1, 3, 180, 240))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):  # an error of another kind stays itself
        forward(torch.nn.Linear(3, 3), torch.randn(1, 3, 180, 240))


def test_a_size_that_an_encoder_does_not_take_is_said_with_the_one_that_it_takes():
    options = {"depths": (1, 1, 1, 1), "embed_dim": 12, "decoder_channels": 16, "strict_img_size": True}
    model = build(ModelSection(arch="upernet", encoder="tu-swin_tiny_patch4_window7_224", options=options), 2).eval()
    with pytest.raises(ModelError) as error:
        forward(model, torch.randn(1, 3, 180, 240))
    assert str(error.value) == (
        "The model does not take frames of 192×256 pixels (height × width, padded to 32); its encoder takes 224×224: "
        "--size 224x224. (Input height (192) doesn't match model (224).)"
    )


@pytest.mark.parametrize(
    ("arch", "options", "text"),
    [
        ("unet-plain", {"channels": 0},
         "unet-plain cannot run with model.options {'channels': 0}: down.0.0.weight would have 0×3×3×3 "
         "weights; give every layer 1 channel or more."),
        ("unet-plain", {"channels": 1.5},
         "unet-plain cannot be built: out_channels must be divisible by groups (model.options "
         "{'channels': 1.5})"),
        ("unet-plain", {"depth": 2},
         "unet-plain cannot be built: UNet.__init__() got an unexpected keyword argument 'depth' "
         "(model.options {'depth': 2})"),
        ("fpn", {"decoder_pyramid_channels": 0},
         "fpn over resnet18 cannot run with model.options {'decoder_pyramid_channels': 0}: decoder.p5.weight would have "
         "0×512×1×1 weights; give every layer 1 channel or more."),
        ("pan", {"decoder_channels": 0}, None),
        ("deeplabv3-torchvision", {"channels": 4},
         "deeplabv3-torchvision takes no model.options; {'channels': 4} is given: leave it out."),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Initializing zero-element")  # pytest undoes the filter of core.models
def test_options_with_which_no_model_runs_are_a_line(arch, options, text):
    encoder = "resnet50" if arch == "deeplabv3-torchvision" else "resnet18"
    with pytest.raises(ModelError) as error:
        build(ModelSection(arch=arch, encoder=encoder, options=options), 2)
    assert "\n" not in str(error.value)
    assert text in (None, str(error.value))


def test_a_vit_with_patches_of_another_size_is_refused_with_the_setting_that_helps():
    dinov2 = {"arch": "dpt", "encoder": "tu-vit_small_patch14_dinov2"}
    with pytest.raises(ModelError) as error:
        build(ModelSection(**dinov2, options=DPT), 2)
    assert str(error.value) == (
        "dpt over tu-vit_small_patch14_dinov2 cannot be built: its patches are 14 px; --set model.options.patch_size=16"
    )
    model = build(ModelSection(**dinov2, options=DPT | {"patch_size": 16}), 2).eval()
    with torch.inference_mode():
        assert forward(model, torch.randn(1, 3, 33, 47)).shape == (1, 2, 33, 47)


def test_names_and_options_that_an_architecture_does_not_take():
    for more, text in (
        (
            {"options": {"decoder_chanels": [8]}},
            "model.options.decoder_chanels is not one of unet's. Did you mean decoder_channels or decoder_interpolation or decoder_use_norm?",
        ),
        (
            {"options": {"classes": 3}},
            "model.options.classes is not one of unet's. Valid: decoder_attention_type, decoder_channels, decoder_interpolation, decoder_use_norm, encoder_depth.",
        ),
        (
            {"arch": "deeplabv3-torchvision", "encoder": "tu-resnet50"},
            "model.encoder 'tu-resnet50' is unknown. Did you mean resnet50 or resnet101?",
        ),
    ):
        with pytest.raises(ModelError) as error:
            build(ModelSection(**more), 2)
        assert str(error.value) == text


def test_one_class_has_one_logit_and_no_second_class():
    model = build(section("unet-plain"), 1).eval()
    with torch.inference_mode():
        assert forward(model, torch.randn(1, 3, 16, 16)).shape == (1, 1, 16, 16)


def test_one_logit_is_two_of_which_the_first_is_zero():
    model = build(section("unet-plain", one_logit=True), 2).eval()
    image = torch.randn(1, 3, 16, 16)
    with torch.inference_mode():
        logits = forward(model, image)
        assert not logits[:, 0].any()
        assert torch.allclose(
            logits.softmax(1)[:, 1], model(functional.pad(image, (0, 16, 0, 16)))[:, 0, :16, :16].sigmoid()
        )
    with pytest.raises(ModelError, match=r"^model\.one_logit is for two classes, the data has 3"):
        build(section("unet-plain", one_logit=True), 3)


def test_the_plain_u_net_has_the_papers_widths_and_its_norms_can_be_left_out():
    with torch.device("meta"):
        plain, normed = UNet(2, batch_norm=False), UNet(2)
    assert sum(p.numel() for p in plain.parameters()) == 31_031_810  # the paper's 64…1024 channels, two outputs
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in normed.modules()) == 18
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in plain.modules())


def test_position_attention_by_hand():
    """Two pixels, one channel: A = (1, 2), B = A, C = A·ln 2, D = 10·A, α = 0.5."""
    module = PositionAttention(1, 1)
    for layer, weight in ((module.query, 1.0), (module.key, torch.log(torch.tensor(2.0))), (module.value, 10.0)):
        layer.weight.data.fill_(weight)
        layer.bias.data.zero_()
    features = torch.tensor([[[[1.0, 2.0]]]])
    assert torch.equal(module(features), features)  # α starts at 0
    module.alpha.data.fill_(0.5)
    # exp(B_i · C_j) = 2^(A_i A_j): for j = 1: 2, 4; for j = 2: 4, 16
    expected = [0.5 * (2 / 6 * 10 + 4 / 6 * 20) + 1, 0.5 * (4 / 20 * 10 + 16 / 20 * 20) + 2]
    assert module(features).flatten().tolist() == pytest.approx(expected)


def test_channel_attention_by_hand():
    """Two channels of one pixel: A = (0, √ln 3), so that exp(A_2 · A_2) = 3 and the others are 1; β = 2."""
    module = ChannelAttention()
    root = torch.log(torch.tensor(3.0)).sqrt().item()
    features = torch.tensor([[[[0.0]], [[root]]]])
    assert torch.equal(module(features), features)
    module.beta.data.fill_(2.0)
    expected = [2 * (1 / 2 * 0 + 1 / 2 * root), 2 * (1 / 4 * 0 + 3 / 4 * root) + root]
    assert module(features).flatten().tolist() == pytest.approx(expected)


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(5)
    return encoder_of(build(ModelSection(encoder="resnet18"), 2)).state_dict()


@pytest.mark.parametrize(
    ("arch", "encoder", "there"),
    [
        ("unet", "resnet18", True),
        ("unet", "dpn92", False),  # has weights of ImageNet-5k alone
        ("unet", "tu-convnext_atto", True),
        ("unet", "tu-resnet200", False),
        ("unet", "tu-nope", False),
        ("unet", "nope", False),
        ("deeplabv3-torchvision", "mobilenet_v3_large", True),
        ("unet-plain", "resnet18", False),
    ],
)
def test_whether_imagenet_weights_are_published_is_known_without_a_network(arch, encoder, there):
    assert has_imagenet(ModelSection(arch=arch, encoder=encoder)) == there


def test_encoder_weights_come_from_a_folder_a_store_or_a_file(resnet18, tmp_path, s3):
    from segray.core.io import storage

    file = tmp_path / "resnet18.imagenet.safetensors"
    save_file(resnet18, file)
    storage.create(f"{s3}/weights/{file.name}", file.read_bytes())
    torch.save({"state_dict": {f"module.{key}": value for key, value in resnet18.items()}}, tmp_path / "mine.pth")
    for more in (
        {"encoder_weights": "imagenet", "weights_dir": str(tmp_path)},
        {"encoder_weights": "imagenet", "weights_dir": f"{s3}/weights"},
        {"encoder_weights": str(tmp_path / "mine.pth")},
        {"encoder_weights": str(file)},
    ):
        config = ModelSection(encoder="resnet18", **more)
        model = build(config, 2)
        load_encoder(model, encoder_weights(config))
        assert all(torch.equal(value, resnet18[key]) for key, value in encoder_of(model).state_dict().items())
    assert encoder_weights(ModelSection()) is None


def test_timms_own_files_fit_tu_encoders(tmp_path):
    import timm

    torch.manual_seed(1)
    whole = timm.create_model("convnext_atto", pretrained=False)
    save_file(whole.state_dict(), tmp_path / "tu-convnext_atto.imagenet.safetensors")
    config = ModelSection(encoder="tu-convnext_atto", encoder_weights="imagenet", weights_dir=str(tmp_path))
    model = build(config, 2)
    load_encoder(model, encoder_weights(config))
    assert torch.equal(encoder_of(model).state_dict()["model.stem_0.weight"], whole.state_dict()["stem.0.weight"])
    with pytest.raises(ModelError, match=r"tu-convnext_nano\.imagenet\.safetensors cannot be read: No such file"):
        encoder_weights(config.model_copy(update={"encoder": "tu-convnext_nano"}))
    file = str(tmp_path / "tu-convnext_atto.imagenet.safetensors")
    with pytest.raises(ModelError, match=rf"^{file} does not hold timm's weights of tu-resnet18: 0 of 20 are there"):
        encoder_weights(ModelSection(encoder="tu-resnet18", encoder_weights=file))


def test_an_encoder_starts_from_another_bundles(tmp_path):
    for encoder in ("mobilenet_v2", "tu-mobilenetv3_small_050"):
        torch.manual_seed(2)
        trained = build(section("fpn", encoder=encoder), 3)
        bundle.save_model(tmp_path / encoder, trained, section("fpn", encoder=encoder))
        config = section("unet", encoder=encoder, encoder_weights=str(tmp_path / encoder / "model.safetensors"))
        model = build(config, 2)
        load_encoder(model, encoder_weights(config))
        for key, value in encoder_of(model).state_dict().items():
            assert torch.equal(value, encoder_of(trained).state_dict()[key])


def test_torchvisions_files_fit_older_ones_and_older_names_too():
    import torchvision

    def old(model):
        return {key: value for key, value in model.state_dict().items() if "num_batches_tracked" not in key}

    load_encoder(build(ModelSection(encoder="resnet18"), 2), old(torchvision.models.resnet18()))
    v3 = build(section("deeplabv3-torchvision"), 2)
    load_encoder(v3, torchvision.models.mobilenet_v3_large().state_dict())
    names = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value
        for key, value in old(torchvision.models.densenet121()).items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in names
    load_encoder(build(ModelSection(encoder="densenet121"), 2), names)


def test_weights_that_cannot_be_used_are_one_line(resnet18, tmp_path):
    with pytest.raises(ModelError) as error:
        load_encoder(build(ModelSection(encoder="mobilenet_v2"), 2), resnet18)
    assert str(error.value) == (
        "The weights are another encoder's, or under other names: of the encoder's 312 tensors 260 are missing "
        "(such as features.0.0.weight); of the file's 120, 120 are unknown (such as conv1.weight) and 0 of another "
        "shape. Give the weights of the encoder that model.encoder names, under the names of "
        "segmentation-models-pytorch, timm or torchvision."
    )
    deeper = encoder_of(build(ModelSection(encoder="resnet34"), 2)).state_dict()  # has all that resnet18 has
    with pytest.raises(
        ModelError, match=r"120 tensors 0 are missing; of the file's 216, 96 are unknown \(such as layer1\.2"
    ):
        load_encoder(build(ModelSection(encoder="resnet18"), 2), deeper)
    folder = {"encoder_weights": "imagenet", "weights_dir": str(tmp_path)}
    with pytest.raises(
        ModelError, match=rf"^{tmp_path}/resnet18.imagenet.safetensors cannot be read: .* Put the weights there"
    ):
        encoder_weights(ModelSection(**folder))
    (tmp_path / "evil.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ModelError, match=rf"^{tmp_path}/evil.pth holds no weights that can be read safely: "):
        encoder_weights(ModelSection(encoder_weights=str(tmp_path / "evil.pth")))
    with pytest.raises(
        ModelError, match=r"^model\.encoder_weights 'imagnet' is none of resnet18's: imagenet, ssl, swsl\."
    ):
        encoder_weights(ModelSection(encoder_weights="imagnet"))
    with pytest.raises(ModelError, match=r"^unet-plain has no encoder for imagenet weights"):
        encoder_weights(ModelSection(arch="unet-plain", encoder_weights="imagenet"))


def test_without_a_network_the_file_and_its_place_are_named(monkeypatch):
    from segmentation_models_pytorch import encoders

    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(encoders, "hf_hub_download", fail)
    with pytest.raises(ModelError) as error:
        encoder_weights(ModelSection(encoder_weights="imagenet"))
    assert str(error.value) == (
        "The imagenet weights of resnet18 could not be downloaded (no route to host). Leave --weights out to start "
        "from random ones, or put resnet18.imagenet.safetensors into a folder and name that: --weights-dir FOLDER."
    )


@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18"])
def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch, tmp_path, encoder):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    begun = time.monotonic()
    with pytest.raises(
        ModelError, match=r"could not be downloaded \(\[Errno 111\] Connection refused\)\. Leave --weights"
    ):
        encoder_weights(ModelSection(encoder=encoder, encoder_weights="imagenet"))
    assert time.monotonic() - begun < 5
    assert not constants.HF_HUB_OFFLINE


def test_pixels_are_as_the_weights_were_trained():
    half = ((0.5,) * 3, (0.5,) * 3)
    usual = preprocessing(ModelSection(encoder="resnet18", encoder_weights="imagenet"))
    assert usual[0] == (0.485, 0.456, 0.406)
    assert preprocessing(ModelSection(encoder="inceptionv4", encoder_weights="imagenet")) == half
    assert (
        preprocessing(ModelSection(encoder="tu-vit_base_patch16_224.augreg_in21k", encoder_weights="imagenet")) == half
    )
    assert preprocessing(ModelSection(encoder="inceptionv4")) == usual
    assert preprocessing(ModelSection(encoder="inceptionv4", encoder_weights="own.safetensors")) == half
    own = ModelSection(encoder="inceptionv4", encoder_weights="own.safetensors", mean=(0.4, 0.4, 0.4))
    assert preprocessing(own) == ((0.4, 0.4, 0.4), half[1])


def test_the_settings_know_every_ready_model():
    assert tuple(ready.READY) == READY_MODELS


@pytest.fixture
def coco(tmp_path, monkeypatch):
    """torchvision's model with random weights, under the published file's name, and no check of its hash."""
    torch.manual_seed(0)
    model = segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=21, aux_loss=True
    )
    monkeypatch.setattr(ready.Ready, "file", "deeplabv3_mobilenet_v3_large-.pth")
    torch.save(model.state_dict(), tmp_path / "deeplabv3_mobilenet_v3_large-.pth")
    monkeypatch.setattr(ready, "CACHE", tmp_path / "cache")
    return model.eval()


def test_a_ready_model_is_torchvisions_with_vocs_classes(coco, tmp_path):
    place = ready.resolve("deeplabv3-mobilenet-coco", str(tmp_path))
    model, info = bundle.load(place)
    assert info.space == voc.LABEL_SPACE
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        assert torch.allclose(forward(model, image), coco(image)["out"], atol=1e-5)
    assert ready.resolve("deeplabv3-mobilenet-coco") == place  # kept: no weights are asked for again
    assert ready.resolve("~/runs/best/") == str(Path.home() / "runs/best")


def test_a_ready_model_without_its_file_says_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setattr(ready, "CACHE", tmp_path / "cache")
    with pytest.raises(ModelError) as error:
        ready.resolve("deeplabv3-coco", str(tmp_path))
    address = segmentation.DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.url
    assert f"Fetch {address}, put it into a folder" in str(error.value)
    (tmp_path / "deeplabv3_resnet50_coco-cd0a2569.pth").write_bytes(b"another")
    with pytest.raises(ModelError, match=r"^deeplabv3_resnet50_coco-cd0a2569.pth is not the published file"):
        ready.resolve("deeplabv3-coco", str(tmp_path))


def test_a_hub_checkpoint_is_a_bundle_of_the_same_model(tmp_path, monkeypatch):
    import segmentation_models_pytorch as smp

    monkeypatch.setattr(ready, "CACHE", tmp_path / "cache")
    published = smp.Segformer("mit_b0", encoder_weights=None, classes=19, decoder_segmentation_channels=64).eval()
    published.save_pretrained(str(tmp_path / "segformer-b0-1024x1024-city-160k"))
    model, info = bundle.load(ready.resolve("smp-hub/segformer-b0-1024x1024-city-160k", str(tmp_path)))
    assert info.space == cityscapes.LABEL_SPACE
    assert (info.input_size, info.resize) == ((1024, 1024), "short_side")
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model(image), published(image))


def test_a_hub_model_takes_any_size_its_encoders_pixels_and_a_store(tmp_path, monkeypatch, s3):
    import segmentation_models_pytorch as smp

    from segray.core.io import storage

    monkeypatch.setattr(ready, "CACHE", tmp_path / "cache")
    published = smp.DPT(
        "tu-vit_tiny_patch16_224", encoder_weights=None, classes=150, img_size=64, dynamic_img_size=False, **DPT
    ).eval()
    published.save_pretrained(str(tmp_path / "dpt"))
    for file in ("config.json", "model.safetensors"):
        storage.create(f"{s3}/hub/dpt-tiny-ade20k/{file}", (tmp_path / "dpt" / file).read_bytes())
    model, info = bundle.load(ready.resolve("smp-hub/dpt-tiny-ade20k", f"{s3}/hub"))
    assert (info.mean, info.std) == ((0.5,) * 3, (0.5,) * 3)
    assert info.space.names[149] == "class 149"
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(forward(model, image), published(image), atol=1e-5)
        assert forward(model, torch.randn(1, 3, 70, 50)).shape == (1, 150, 70, 50)
    with pytest.raises(
        ModelError, match=r"^smp-hub/other could not be read \(s3://.*/other/config.json cannot be read"
    ):
        ready.resolve("smp-hub/other", f"{s3}/hub")


@pytest.mark.parametrize("encoder", ["tu-hf-hub:owner/name", "tu-hf_hub:owner/name", "tu-local-dir:/etc", "tu-a/b"])
def test_an_encoders_name_reaches_neither_network_nor_disk(encoder, tmp_path, tiny_bundle, monkeypatch):
    """A bundle, a teacher and a published model may come from anywhere."""
    import timm

    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: pytest.fail("was built"))
    for arch in ("unet", "danet", "dpt"):
        with pytest.raises(ModelError, match=rf"^model\.encoder '{encoder}' is unknown\."):
            build(ModelSection(arch=arch, encoder=encoder), 2)
    foreign = tmp_path / "bundle"
    foreign.mkdir()
    info = json.loads((tiny_bundle / "segray.json").read_text())
    info["model"]["encoder"] = encoder
    (foreign / "segray.json").write_text(json.dumps(info))
    (foreign / "model.safetensors").symlink_to(tiny_bundle / "model.safetensors")
    with pytest.raises(ModelError, match=rf"^model\.encoder '{encoder}' is unknown\."):
        bundle.load(str(foreign))
    monkeypatch.setattr(ready, "CACHE", tmp_path / "cache")
    config = json.loads((tiny_bundle / "config.json").read_text()) | {"encoder_name": encoder}
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    (tmp_path / "unet" / "model.safetensors").symlink_to(tiny_bundle / "model.safetensors")
    with pytest.raises(ModelError, match=rf"^smp-hub/unet could not be read \(model\.encoder '{encoder}' is unknown"):
        ready.resolve("smp-hub/unet", str(tmp_path))


@pytest.mark.parametrize(
    "option", ["pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"]
)
def test_an_option_of_a_bundle_reads_no_file(option):
    with pytest.raises(ModelError) as error:
        build(ModelSection(encoder="tu-resnet18", options={option: "/etc/passwd"}), 2)
    assert str(error.value) == f"model.options.{option} would read what is no part of the model; leave it out."


@pytest.mark.parametrize("name", ["resnet18", "mit_b0", "timm-efficientnet-b0"])
def test_the_table_of_encoders_is_what_they_are(name):
    assert cost(name) in read_costs()


@pytest.mark.long
def test_the_whole_table_of_encoders_is_what_they_are():
    assert read_costs() == [cost(name) for name in sorted(smp_encoders)]


def test_the_table_has_every_encoder():
    assert [row.name for row in read_costs()] == sorted(smp_encoders)


def test_the_listing_filters_by_name():
    architectures, encoders, readies = (rows for _, _, rows in list_models("resnext50"))
    assert [row[0] for row in encoders] == ["resnext50_32x4d", "se_resnext50_32x4d", "timm-skresnext50_32x4d"]
    assert encoders[0][1:] == ("23.0 M", 32, "imagenet, ssl, swsl")
    assert (architectures, readies) == ([], [])
    assert {row[0] for row in list_models("deeplab")[0][2]} == {"deeplabv3", "deeplabv3plus", "deeplabv3-torchvision"}
    assert len(list_models("coco")[2][2]) == 3
    assert any(row[0] == "tu-convnext_tiny" for row in list_models("tu-convnext")[1][2])
