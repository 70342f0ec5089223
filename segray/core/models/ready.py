"""Models from elsewhere as bundles, for labelling without training: made once in a cache, from upstream's own files.

A published model has a name: of torchvision, of smp's authors (smp-hub/…), or of the Hugging Face Hub (hf:OWNER/NAME).
A folder that transformers' save_pretrained wrote is taken as it is.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from segray.core.data import cityscapes, voc
from segray.core.io import storage
from segray.core.models import build, bundle, pretrained, weights
from segray.core.models.info import CONFIG, INFO, WEIGHTS, BundleInfo
from segray.core.models.places import is_pretrained
from segray.core.samples import LabelSpace
from segray.errors import ModelError, StorageError
from segray.sections.training import ModelSection
from segray.sections.values import HF, HUB, is_ready_model

CACHE = Path("~/.cache/segray/models")


@dataclass(frozen=True)
class Ready:
    """A model of torchvision. weights: its enum, whose file name ends with the beginning of its sha256."""

    encoder: str
    weights: str
    short_side: int = 520  # upstream's evaluation resizes frames to it

    @property
    def url(self) -> str:
        from torchvision.models import segmentation

        url: str = getattr(segmentation, self.weights).COCO_WITH_VOC_LABELS_V1.url
        return url

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]


READY = {
    "deeplabv3-coco": Ready("resnet50", "DeepLabV3_ResNet50_Weights"),
    "deeplabv3-resnet101-coco": Ready("resnet101", "DeepLabV3_ResNet101_Weights"),
    "deeplabv3-mobilenet-coco": Ready("mobilenet_v3_large", "DeepLabV3_MobileNet_V3_Large_Weights"),
}


def resolve(uri: str, weights_dir: str | None = None) -> str:
    """Return a bundle's absolute path: the given one, or a model's from elsewhere in the cache, made on first use."""
    if is_ready_model(uri):
        return bundle_of(uri, weights_dir)
    place = storage.absolute(uri.removeprefix(HF))
    return _of_pretrained(place) if is_pretrained(place) else place


def _of_pretrained(place: str) -> str:
    """Return the bundle of a folder of transformers, which is made again when the folder's files have changed."""
    files = sorted((entry.uri, entry.size, entry.stamp) for entry in storage.list_files(place, deep=False))
    state = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]
    folder = CACHE.expanduser() / f"{storage.name_of(place)}-{state}"
    if not (folder / INFO).exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        bundle.save(folder, *pretrained.read(place))
    return str(folder)


def bundle_of(name: str, weights_dir: str | None = None) -> str:
    """Return the folder of a ready model's bundle. Its weights come from `weights_dir`, or are downloaded.

    Raises ModelError that names the file, its address and where to put it.
    """
    folder = CACHE.expanduser() / name.replace("/", "--")
    if not (folder / INFO).exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        if name.startswith(HF):
            model, info = pretrained.read(name, weights_dir)
        elif name.startswith(HUB):
            model, info = _from_hub(name, weights_dir)
        else:
            model, info = _from_torchvision(READY[name], weights_dir)
        bundle.save(folder, model, info)
    return str(folder)


def _from_torchvision(ready: Ready, weights_dir: str | None) -> tuple[torch.nn.Module, BundleInfo]:
    section = ModelSection(arch="deeplabv3-torchvision", encoder=ready.encoder)
    model = build(section, voc.LABEL_SPACE.num_classes)
    model.load_state_dict(_weights(ready, weights_dir))
    return model, _info(section, voc.LABEL_SPACE, ready.short_side)


def _weights(ready: Ready, weights_dir: str | None) -> weights.Weights:
    """Load the state dict and check its sha256 against the file's name."""
    try:
        if weights_dir is not None:
            data = storage.read_bytes(storage.join(storage.absolute(weights_dir), ready.file))
        else:
            kept = Path(torch.hub.get_dir()) / "checkpoints" / ready.file
            if not kept.exists():
                kept.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(ready.url, str(kept), progress=False)
            data = kept.read_bytes()
    except (StorageError, OSError) as error:
        raise ModelError(
            f"{ready.file} could not be {_fetched(weights_dir)} ({str(error).rstrip('.')}). Fetch {ready.url}, put it "
            "into a folder, and name that: --weights-dir FOLDER."
        ) from error
    if not hashlib.sha256(data).hexdigest().startswith(ready.file.split("-")[-1].removesuffix(".pth")):
        raise ModelError(f"{ready.file} is not the published file (its sha256 differs); fetch {ready.url} again.")
    state: weights.Weights = torch.load(io.BytesIO(data), "cpu", weights_only=True)
    return state


def _fetched(weights_dir: str | None) -> str:
    return "downloaded" if weights_dir is None else "read"


def _from_hub(name: str, weights_dir: str | None) -> tuple[torch.nn.Module, BundleInfo]:
    """Load a model published by smp's authors; `weights_dir` holds it in a folder of the name's last part."""
    from huggingface_hub import hf_hub_download
    from safetensors.torch import load

    def read(file: str) -> bytes:
        if weights_dir is None:
            with weights.quiet_hub():
                return Path(hf_hub_download(name, file)).read_bytes()
        return storage.read_bytes(storage.join(storage.absolute(weights_dir), name.removeprefix(HUB), file))

    try:
        config, state = json.loads(read(CONFIG)), load(read(WEIGHTS))
        section, classes = pretrained.smp_section(config)
        model = build(section, classes)  # as for a bundle: nothing named by the configuration is downloaded or read
        model.load_state_dict(state)
    except Exception as error:  # the hub's client raises many kinds of errors: connection, cache, name
        raise ModelError(
            f"{name} could not be {_fetched(weights_dir)} ({weights.first_words(error)}). Put its config.json and "
            f"model.safetensors into FOLDER/{name.removeprefix(HUB)}, and name FOLDER: --weights-dir FOLDER."
        ) from error
    side = re.search(r"(\d+)x\d+", name)
    info = _info(section, _hub_classes(name, classes), int(side[1]) if side else 512)
    info.mean, info.std = weights.preprocessing(section.model_copy(update={"encoder_weights": "imagenet"}))
    return model, info


def _hub_classes(name: str, classes: int) -> LabelSpace:
    if "city" in name and classes == cityscapes.LABEL_SPACE.num_classes:
        return cityscapes.LABEL_SPACE
    return pretrained.spaced(tuple(f"class {i}" for i in range(classes)))


def _info(section: ModelSection, space: LabelSpace, side: int) -> BundleInfo:
    return BundleInfo(
        model=section, label_space=space.to_dict(), input_size=(side, side), resize="short_side"
    )  # fmt: skip
