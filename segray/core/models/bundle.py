"""The model bundle: all that labelling needs to know of a trained model, in one folder, local or in a bucket.

model.safetensors, config.json   as save_pretrained of smp or transformers writes them: from_pretrained(folder) loads it
segray.json                      classes, preprocessing, scores, resolved settings, sha256 of the weights
README.md                        the same for people, as a card of the Hugging Face Hub
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from segray import __version__
from segray.core.io import storage
from segray.core.models import build, name_of
from segray.core.models.card import card
from segray.core.models.info import CARD, CONFIG, INFO, WEIGHTS, BundleInfo, model_id_of, read_info
from segray.core.models.weights import check_numbers
from segray.errors import ModelError
from segray.sections.training import ModelSection

LIBRARIES = {"hf": "transformers", "onnx": "onnx"}  # which run a model that is from elsewhere


def save(folder: str | Path, model: torch.nn.Module, info: BundleInfo) -> BundleInfo:
    """Write the bundle to `folder`, replacing an earlier one. Returns info with its ids."""
    with beside(str(folder)) as temporary:
        save_model(temporary, model, info.model)
        info = info.model_copy()
        info.weights_sha256 = hashlib.sha256((temporary / WEIGHTS).read_bytes()).hexdigest()
        info.model_id = model_id_of(info)
        used = LIBRARIES.get(info.model.arch, "segmentation-models-pytorch")
        info.versions = {"segray": __version__} | {name: version(name) for name in ("torch", used)}
        (temporary / INFO).write_text(info.model_dump_json(indent=2))
        (temporary / CARD).write_bytes(card(info).encode())  # replaces smp's card, which describes smp's example
    return info


@contextmanager
def beside(folder: str) -> Iterator[Path]:
    """Yield a local folder to write to; when the block ends without an error, it replaces `folder`.

    A local `folder` is replaced by two renames: a kill between them leaves neither half-written. In a bucket files are
    written one by one, segray.json last: until then the sha256 in the older one refuses the newer weights.
    """
    if not storage.in_bucket(folder):
        target = Path(folder)
        temporary, old = (target.with_name(f".{target.name}.{uuid.uuid4().hex}.{end}") for end in ("tmp", "old"))
        try:
            yield temporary
            if target.exists():
                target.rename(old)
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
        return
    with tempfile.TemporaryDirectory(prefix="segray-") as there:
        yield (temporary := Path(there) / "bundle")
        for file in sorted(temporary.iterdir(), key=lambda file: file.name == INFO):
            storage.replace(storage.join(folder, file.name), file.read_bytes())


def save_model(folder: Path, model: torch.nn.Module, section: ModelSection) -> None:
    """Write weights and config.json: as smp writes them for its own models, and in the same files for others."""
    from safetensors.torch import save_file

    if own_save := getattr(model, "save_pretrained", None):
        own_save(str(folder))
        return
    folder.mkdir(parents=True)
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(
        section.model_dump_json(indent=2, include={"arch", "encoder", "batch_norm", "options"})
    )


def copy_to(folder: str, place: str) -> None:
    """Replace `folder` with a copy of the bundle at `place`; either may be in a bucket."""
    with beside(folder) as temporary:
        temporary.mkdir()
        for entry in storage.list_files(place):
            (temporary / storage.name_of(entry.uri)).write_bytes(storage.read_bytes(entry.uri))


def load(uri: str) -> tuple[torch.nn.Module, BundleInfo]:
    """Load the model, in eval mode on the CPU, and its info. Raises ModelError if the weights are not those saved."""
    from safetensors import SafetensorError
    from safetensors.torch import load as load_weights

    info = read_info(uri)
    data = storage.read_bytes(storage.join(uri, WEIGHTS))
    if hashlib.sha256(data).hexdigest() != info.weights_sha256:
        raise ModelError(f"{uri}/{WEIGHTS} is not the file that was saved (sha256 differs); copy the bundle again.")
    model = build(info.model, len(info.label_space["names"]))
    try:
        state = load_weights(data)
        model.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        raise ModelError(
            f"{uri}/{WEIGHTS} does not fit {name_of(info.model)} with "
            f"{len(info.label_space['names'])} classes, as {INFO} says: {str(error).splitlines()[-1].strip()}"
        ) from error
    check_numbers(state, f"{uri}/{WEIGHTS}")
    return model.eval(), info


def check_writable(uri: str) -> None:
    """Rewrite segray.json unchanged. Raises StorageError if it cannot be written."""
    there = storage.join(uri, INFO)
    storage.replace(there, storage.read_bytes(there))


def set_temperature(uri: str, temperature: float, fit: dict[str, Any]) -> BundleInfo:
    """Write another temperature, and how well it fits, into segray.json; this changes the bundle's model_id."""
    info = read_info(uri).model_copy(update={"temperature": temperature, "calibration": fit})
    info.model_id = model_id_of(info)
    storage.replace(storage.join(uri, INFO), info.model_dump_json(indent=2).encode())
    storage.replace(storage.join(uri, CARD), card(info).encode())
    return info


def count_parameters(uri: str) -> int:
    """Count learned weights and stored statistics, from the header of the safetensors file.

    The header is 8 bytes with its length, least significant first, then JSON (safetensors' README, Format).
    """
    with storage.open_read(storage.join(uri, WEIGHTS)) as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
    return sum(math.prod(tensor["shape"]) for tensor in tensors if tensor["dtype"] != "U8")  # which is a file's bytes
