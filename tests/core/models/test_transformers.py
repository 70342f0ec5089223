"""Models of transformers, each with random weights, against transformers' own pipeline: processor, model, post-processing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from segray.config import load
from segray.core.data import streets
from segray.core.infer.predictor import Predictor
from segray.core.io import storage
from segray.core.models import build, bundle, coarse, forward, name_of, ready
from segray.core.models.imported import import_model
from segray.core.models.info import BundleInfo, read_info
from segray.core.training.objective import make_teacher
from segray.core.training.workers import LocalWorker
from segray.core.transforms import normalize, to_float
from segray.errors import ConfigError, ModelError
from segray.sections.labelling import InferSection
from segray.sections.training import ModelSection

transformers = pytest.importorskip("transformers")

CLASSES = ["road", "sky", "car", "tree", "person"]
SWIN = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2}
STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
VIT = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 16}
CITY = {"image_size": 64, **VIT}
WIDE = {"hidden_dim": 32, "encoder_feedforward_dim": 16, "dim_feedforward": 16, "num_attention_heads": 2}


def swin():
    return transformers.SwinConfig(**SWIN, **STAGES)


def segformer():
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=16
    )
    size = {"height": 64, "width": 96}
    return transformers.SegformerForSemanticSegmentation, config, transformers.SegformerImageProcessor(size=size)


def upernet():
    backbone = transformers.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, **STAGES)
    config = transformers.UperNetConfig(backbone_config=backbone, hidden_size=16, auxiliary_channels=8)
    size = {"height": 64, "width": 64}
    return transformers.UperNetForSemanticSegmentation, config, transformers.SegformerImageProcessor(size=size)


def dpt():
    config = transformers.DPTConfig(
        **CITY, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8] * 4, fusion_hidden_size=16, is_hybrid=False
    )
    processor = transformers.DPTImageProcessor(size={"height": 70, "width": 70}, ensure_multiple_of=32)
    return transformers.DPTForSemanticSegmentation, config, processor


def beit():
    config = transformers.BeitConfig(**CITY, out_indices=[1, 2, 3, 4], use_relative_position_bias=True)
    processor = transformers.BeitImageProcessor(size={"height": 64, "width": 64})
    return transformers.BeitForSemanticSegmentation, config, processor


def data2vec():
    config = transformers.Data2VecVisionConfig(**CITY, out_indices=[1, 2, 3, 4], use_auxiliary_head=False)
    processor = transformers.BeitImageProcessor(size={"height": 64, "width": 64})
    return transformers.Data2VecVisionForSemanticSegmentation, config, processor


def mobilevit():
    config = transformers.MobileViTConfig(
        hidden_sizes=[16, 20, 24], neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32], aspp_out_channels=16,
        aspp_dropout_prob=0.0, num_attention_heads=2,
    )  # fmt: skip
    processor = transformers.MobileViTImageProcessor(size={"shortest_edge": 64}, do_center_crop=False)
    return transformers.MobileViTForSemanticSegmentation, config, processor


def mobilenet():
    config = transformers.MobileNetV2Config(depth_multiplier=0.25, classifier_dropout_prob=0.0)
    processor = transformers.MobileNetV2ImageProcessor(size={"shortest_edge": 65}, do_center_crop=False)
    return transformers.MobileNetV2ForSemanticSegmentation, config, processor


def mask2former():
    config = transformers.Mask2FormerConfig(
        backbone_config=swin(), num_queries=8, mask_feature_size=32, feature_size=32, encoder_layers=1, decoder_layers=2,
        **WIDE,
    )  # fmt: skip
    processor = transformers.Mask2FormerImageProcessor(size={"shortest_edge": 60, "longest_edge": 90}, size_divisor=32)
    return transformers.Mask2FormerForUniversalSegmentation, config, processor


def maskformer():
    decoder = transformers.DetrConfig(
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=8,
        encoder_attention_heads=2, decoder_attention_heads=2,
    )  # fmt: skip
    config = transformers.MaskFormerConfig(
        backbone_config=swin(), decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32
    )
    processor = transformers.MaskFormerImageProcessor(size={"height": 64, "width": 96}, size_divisor=32)
    return transformers.MaskFormerForInstanceSegmentation, config, processor


def oneformer():
    config = transformers.OneFormerConfig(
        backbone_config=swin(), num_queries=8, mask_dim=32, conv_dim=32, encoder_layers=1, decoder_layers=3,
        is_training=False, **WIDE,
        text_encoder_width=16, text_encoder_num_layers=1, text_encoder_vocab_size=40, query_dec_layers=1,
        text_encoder_n_ctx=4, text_encoder_context_length=16, task_seq_len=16,
    )  # fmt: skip
    processor = transformers.OneFormerImageProcessor(size={"height": 64, "width": 96})
    return transformers.OneFormerForUniversalSegmentation, config, processor


def eomt():
    config = transformers.EomtConfig(**CITY, num_queries=8, num_blocks=1, num_upscale_blocks=1)
    processor = transformers.EomtImageProcessor(size={"shortest_edge": 64, "longest_edge": None}, do_split_image=True)
    return transformers.EomtForUniversalSegmentation, config, processor


def eomt_dinov3():
    config = transformers.EomtDinov3Config(**CITY, num_queries=8, num_blocks=1, num_upscale_blocks=1)
    processor = transformers.EomtImageProcessor(size={"shortest_edge": 64, "longest_edge": None}, do_split_image=True)
    return transformers.EomtDinov3ForUniversalSegmentation, config, processor


KINDS = [segformer, upernet, dpt, beit, data2vec, mobilevit, mobilenet]
KINDS += [mask2former, maskformer, oneformer, eomt, eomt_dinov3]


def letters():
    """A tokenizer of OneFormer that knows letters alone."""
    words = ["<|startoftext|>", *"aceihkmnst ", *(f"{letter}</w>" for letter in "aceihkmnst"), "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])


def outputs_of(model, processor, frame):
    """What transformers' own processor and model make of a frame."""
    if model.config.model_type == "oneformer":
        processor = transformers.OneFormerProcessor(processor, letters(), task_seq_length=model.config.task_seq_len)
        inputs = processor(frame, ["semantic"], return_tensors="pt")
    else:
        inputs = processor(frame, return_tensors="pt")
    with torch.inference_mode():
        return model(**inputs)


def theirs(model, processor, frame):
    """The ids and scores that transformers finds in a frame."""
    outputs, size = outputs_of(model, processor, frame), frame.shape[:2]
    (made,) = processor.post_process_semantic_segmentation(
        outputs, target_sizes=[size], return_segmentation_scores=True
    )
    return made.segmentation.numpy(), made.segmentation_scores


def ours(predictor, frame):
    batch = normalize(
        to_float(torch.from_numpy(predictor.prepare(frame))[None]), predictor.info.mean, predictor.info.std
    )
    with torch.inference_mode():
        logits = coarse(predictor.model, batch)
    scores = functional.interpolate(logits.exp() if predictor.scores else logits, frame.shape[:2], mode="bilinear")
    return predictor.predict([predictor.prepare(frame)], [frame.shape[:2]])[0], scores[0]


def saved(kind, folder):
    """A folder as save_pretrained writes it, and what made it."""
    made, config, processor = kind()
    config.id2label = dict(enumerate(CLASSES))
    config.label2id = {name: i for i, name in enumerate(CLASSES)}
    torch.manual_seed(0)
    model = made(config).eval()
    for parameter in model.parameters():  # as transformers draws them, they give one class everywhere
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0, 1.5 * parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if model.config.model_type == "oneformer":
        letters().save_pretrained(folder)
    return model, processor


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(ready, "CACHE", tmp_path / "cache")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_ids_are_those_of_transformers_own_pipeline(kind, tmp_path):
    model, processor = saved(kind, tmp_path / "theirs")
    predictor = Predictor(ready.resolve(str(tmp_path / "theirs")))
    assert predictor.label_space.names == tuple(CLASSES)
    for size in ((70, 110), (90, 66)):
        frame = streets.draw(1, size).image_hwc
        wanted, scores = theirs(model, processor, frame)
        found, own_scores = ours(predictor, frame)
        assert (own_scores - scores).abs().max() < 1e-4 * scores.abs().max()
        assert (found.mask_hw == wanted).mean() > 0.999  # but at ties
        assert 0.2 < found.confidence_mean <= 1


def test_a_bundle_of_it_is_loaded_by_transformers_too_and_says_what_it_is(tmp_path):
    model, _ = saved(segformer, tmp_path / "theirs")
    place = ready.resolve(str(tmp_path / "theirs"))
    again = transformers.AutoModelForSemanticSegmentation.from_pretrained(place).eval()
    ours, info = bundle.load(place)
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        assert torch.equal(again(image).logits, model(image).logits)
        assert torch.equal(coarse(ours, image), model(image).logits)
        assert forward(ours, image).shape == (1, 5, 64, 96)
    assert (name_of(info.model), info.source) == ("segformer (hf)", {"name": "theirs"})
    assert info.versions["transformers"] == transformers.__version__
    assert ready.resolve(str(tmp_path / "theirs")) == place
    (tmp_path / "theirs" / "config.json").touch()
    assert ready.resolve(f"hf:{tmp_path}/theirs") != place  # its files may be others


def test_one_label_is_told_from_background_by_its_logit(tmp_path):
    model, processor = saved(segformer, tmp_path / "theirs")
    model = type(model)(transformers.SegformerConfig(**model.config.to_dict() | {"id2label": {0: "road"}})).eval()
    model.save_pretrained(tmp_path / "theirs")
    predictor = Predictor(ready.resolve(str(tmp_path / "theirs")))
    assert predictor.label_space.names == ("background", "road")
    frame = streets.draw(1, (64, 96)).image_hwc
    with torch.inference_mode():
        logits = model(**processor(frame, return_tensors="pt")).logits
    wanted = functional.interpolate(logits, (64, 96), mode="bilinear", align_corners=False)[0, 0] > 0
    assert (predictor.predict([predictor.prepare(frame)], [(64, 96)])[0].mask_hw == wanted.numpy()).all()
    assert import_model(str(tmp_path / "theirs"), str(tmp_path / "out"), load(), "lane").info.space.names == (
        "background",
        "lane",
    )


def test_a_model_of_the_hub_is_pinned_to_its_commit(tmp_path, monkeypatch):
    saved(segformer, tmp_path / "0123abc")
    asked = []

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision))
        return str(tmp_path / "0123abc")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    place = ready.resolve("hf:nvidia/segformer-tiny@refs/pr/3")
    assert read_info(place).source == {"name": "hf:nvidia/segformer-tiny@refs/pr/3", "revision": "0123abc"}
    assert "made of hf:nvidia/segformer-tiny@refs/pr/3 at revision 0123abc" in (Path(place) / "README.md").read_text()
    assert ready.resolve("hf:nvidia/segformer-tiny@refs/pr/3") == place
    assert asked == [("nvidia/segformer-tiny", "refs/pr/3")]


def test_a_name_is_imported_to_a_place_that_a_cluster_sees(tmp_path, s3):
    saved(segformer, tmp_path / "tiny")
    settings = load(None, {"model.weights_dir": str(tmp_path)})
    info, _ = import_model("hf:nvidia/tiny", f"{s3}/bundles/tiny", settings)
    assert info.source == {"name": "hf:nvidia/tiny"}
    assert bundle.load(f"{s3}/bundles/tiny")[1] == info
    with pytest.raises(ConfigError, match=r"^hf:nvidia/tiny names its classes itself; leave --classes out\.$"):
        import_model("hf:nvidia/tiny", str(tmp_path / "out"), settings, "19")


def test_without_a_network_it_is_said_what_to_fetch_and_a_folder_or_a_store_holds_it(tmp_path, monkeypatch, s3):
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ModelError) as error:
        ready.resolve("hf:nvidia/tiny")
    assert str(error.value) == (
        "hf:nvidia/tiny could not be downloaded (no route to host). Put its config.json, preprocessor_config.json and "
        "*.safetensors into FOLDER/tiny, and name FOLDER: --weights-dir FOLDER."
    )
    with pytest.raises(
        ModelError, match=rf"^{tmp_path}/tiny holds no config\.json\. Put its .* into {tmp_path}/tiny, "
    ):
        ready.resolve("hf:nvidia/tiny", str(tmp_path))
    saved(segformer, tmp_path / "tiny")
    for file in (tmp_path / "tiny").iterdir():
        storage.create(f"{s3}/hf/tiny/{file.name}", file.read_bytes())
    model_id = read_info(ready.resolve("hf:nvidia/tiny", f"{s3}/hf")).model_id
    assert model_id == read_info(ready.resolve(f"{s3}/hf/tiny")).model_id
    assert model_id == read_info(ready.resolve("hf:other/tiny", str(tmp_path))).model_id


def spoilt(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "is not used: it has no .safetensors, and other weights are not unpickled. A revision may have them, such as "
            "@refs/pr/1 of the Hub's conversion; or load it in transformers and save_pretrained() it.",
        ),
        (
            lambda folder: (folder / "preprocessor_config.json").unlink(),
            "is not used: it has no preprocessor_config.json, which says how frames are resized and normalised; fetch it "
            "as well.",
        ),
        (
            lambda folder: spoilt(folder, id2label={"0": "road", "2": "car", "7": "sky"}),
            "is not used: id2label of config.json names the ids 0, 2, 7, and a model of 3 classes gives 0 to 2; name each "
            "of these there.",
        ),
        (
            lambda folder: spoilt(folder, architectures=["SegformerForImageClassification"]),
            "is not used: it is a SegformerForImageClassification, without the head of a "
            "SegformerForSemanticSegmentation.",
        ),
        (
            lambda folder: spoilt(folder, model_type="swin", architectures=["SwinModel"]),
            "is not used: swin has no head for semantic segmentation in transformers; those that have one are ",
        ),
        (
            lambda folder: spoilt(folder, model_type="own", auto_map={"AutoConfig": "own.py--Own"}),
            "is not used: model_type 'own' is none that transformers has code for; code from elsewhere is not run.",
        ),
        (
            lambda folder: spoilt(folder, backbone="owner/name", backbone_config=None),
            "is not used: backbone of config.json names 'owner/name', which would be fetched; save the model with its "
            "backbone_config.",
        ),
        (
            lambda folder: spoilt(folder, hidden_sizes=[8, 8, 16, 32]),
            "cannot be loaded by transformers: ",
        ),
    ],
)  # fmt: skip
def test_what_is_no_such_model_is_a_line(spoil, text, tmp_path):
    saved(segformer, tmp_path / "theirs")
    spoil(tmp_path / "theirs")
    with pytest.raises(ModelError) as error:
        ready.resolve(str(tmp_path / "theirs"))
    assert str(error.value).startswith(f"{tmp_path}/theirs {text}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            {"model_type": "upernet", "backbone": "owner/name"},
            "backbone of config.json names 'owner/name', which would be",
        ),
        (
            {
                "model_type": "upernet",
                "backbone_config": {"model_type": "timm_backbone", "backbone": "hf-hub:owner/name"},
            },
            "backbone_config.backbone of config.json names 'hf-hub:owner/name', which would be",
        ),
        (
            {"model_type": "upernet", "backbone_config": {"model_type": "swin", "attn_implementation": "owner/kernel"}},
            "backbone_config.attn_implementation of config.json names what is no part of the model; take it out.",
        ),
    ],
)
def test_a_bundles_configuration_reaches_neither_network_nor_code(config, text):
    with pytest.raises(ModelError) as error:
        build(ModelSection(arch="hf", encoder="upernet", options={"config": config}), 2)
    assert str(error.value).startswith(text)


@pytest.mark.parametrize("frame", [(1024, 2048), (375, 1242), (1242, 375), (513, 513), (480, 641), (33, 1000)])
def test_frames_have_the_sizes_that_transformers_gives_them(frame):
    from transformers.image_transforms import get_size_with_aspect_ratio
    from transformers.models.dpt.image_processing_dpt import get_resize_output_image_size

    def size(**more):
        return BundleInfo(model=ModelSection(), label_space={}, **more).seen_size(frame)

    short = {"input_size": (512, 512), "resize": "short_side"}
    assert size(**short) == get_size_with_aspect_ratio(frame, 512)
    assert size(**short, longest_px=1333) == get_size_with_aspect_ratio(frame, 512, 1333)
    near = get_resize_output_image_size(torch.empty(3, *frame), (384, 512), True, 32)
    assert size(input_size=(384, 512), resize="nearest_side", multiple_of=32) == (near.height, near.width)
    assert size(input_size=(384, 512), resize="none") == frame


def test_padding_is_cropped_from_eomts_masks_as_for_panoptic_ones(tmp_path):
    """Its post-processing of semantic maps would stretch the padding over the frame."""

    def padded():
        return *eomt()[:2], transformers.EomtImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}, do_pad=True)

    model, processor = saved(padded, tmp_path / "theirs")
    frame = streets.draw(1, (48, 80)).image_hwc
    outputs = outputs_of(model, processor, frame)
    masks = functional.interpolate(outputs.masks_queries_logits, (64, 64), mode="bilinear")
    (masks,) = processor.unpad_image(masks.sigmoid(), [(38, 64)], processor.size)
    wanted = torch.einsum("qc,qhw->chw", outputs.class_queries_logits[0].softmax(-1)[:, :-1], masks)
    wanted = functional.interpolate(wanted[None], (48, 80), mode="bilinear")[0]
    _, scores = ours(Predictor(ready.resolve(str(tmp_path / "theirs"))), frame)
    assert (scores - wanted).abs().max() < 1e-4


def test_it_teaches_and_sees_windows_flips_and_scales(tmp_path):
    saved(upernet, tmp_path / "theirs")
    frame = streets.draw(1, (64, 64)).image_hwc
    whole = Predictor(ready.resolve(str(tmp_path / "theirs")))
    slid = Predictor(ready.resolve(str(tmp_path / "theirs")), infer=InferSection(window=(64, 64), flip=True))
    one, other = (p.predict([p.prepare(frame)], [(64, 64)])[0] for p in (whole, slid))
    assert (one.mask_hw == other.mask_hw).mean() > 0.5
    config = load(None, {"train.teacher": f"hf:{tmp_path}/theirs", "train.precision": "fp32"}).absolute()
    assert config.train.teacher == f"{tmp_path}/theirs"
    teach = make_teacher(LocalWorker(torch.device("cpu")), config, config.train.teacher)
    assert teach(torch.randn(1, 3, 64, 64)).shape == (1, 5, 64, 64)


def test_the_temperature_of_a_universal_model_softens_mirrored_and_scaled_frames_too(tmp_path):
    saved(maskformer, tmp_path / "theirs")
    place = ready.resolve(str(tmp_path / "theirs"))
    bundle.set_temperature(place, 4.0, {})
    frame = streets.draw(1, (50, 70)).image_hwc
    whole, twice, slid = (
        (predictor := Predictor(place, infer=InferSection(**ways))).predict([predictor.prepare(frame)], [(50, 70)])[0]
        for ways in ({}, {"scales": [1.0, 1.0]}, {"window": (64, 96)})
    )
    assert twice.confidence_mean == pytest.approx(whole.confidence_mean, abs=0.01)
    assert (twice.mask_hw == whole.mask_hw).mean() > 0.99
    assert slid.confidence_mean < 0.35


def test_the_confidence_of_a_universal_model_is_of_the_scores_that_its_masks_are_made_of(tmp_path):
    model, processor = saved(maskformer, tmp_path / "theirs")
    predictor = Predictor(ready.resolve(str(tmp_path / "theirs")), confidence_maps=True)
    frame = streets.draw(1, (90, 130)).image_hwc
    ids, scores = theirs(model, processor, frame)
    shares = scores / scores.sum(0)
    points = np.argwhere(np.ones((90, 130), bool))
    (found,) = predictor.predict([predictor.prepare(frame)], [(90, 130)], [points])
    assert (np.abs(found.confidence_hw / 255 - shares.max(0).values.numpy()) < 0.01).mean() > 0.99
    softmax = torch.from_numpy(found.logits_nc).softmax(1)
    assert ((softmax - shares.flatten(1).T).abs() < 0.01).float().mean() > 0.99
    assert (softmax.argmax(1).numpy() == ids.ravel()).mean() > 0.99


def test_a_name_of_the_hub_is_no_path():
    assert load(None, {"label.model": "hf:nvidia/segformer-b0"}).absolute().label.model == "hf:nvidia/segformer-b0"


@pytest.mark.long
def test_onnx_runtime_gives_the_same_ids(tmp_path):
    saved(segformer, tmp_path / "theirs")
    place = ready.resolve(str(tmp_path / "theirs"))
    frame = streets.draw(1, (70, 110)).image_hwc
    found = [
        predictor.predict([predictor.prepare(frame)], [(70, 110)])[0].mask_hw
        for predictor in (Predictor(place, infer=InferSection(engine=engine)) for engine in ("torch", "onnx"))
    ]
    assert (found[0] == found[1]).mean() > 0.999
