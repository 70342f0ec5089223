"""What stands at a place that is no model bundle, and what to do with it, for the error message."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from segray.core.io import storage
from segray.sections.values import READY_MODELS

INFO, CONFIG, BEST = "segray.json", "config.json", "best"
LOOKS_BELOW = (BEST, f"*/{BEST}", f"trials/*/{BEST}", "*")  # where a run, a folder of runs and a sweep have bundles
IMPORTED = (".onnx", ".pt", ".pth", ".ckpt", ".bin", ".safetensors")
SHOWN = 3  # bundles that a message names
LIKE = 0.6  # share of a name's characters, as difflib counts them, from which another one is nearly the same


def why_no_bundle(uri: str) -> str:
    """Say in a line or two what is at an absolute path or URI that holds no segray.json, and the next step."""
    if not storage.exists(uri):
        return f"{uri} does not exist.{nearly(uri)}"
    if found := list(_bundles_below(uri)):
        more = ", …" if len(found) > SHOWN else ""
        several = "the bundle is" if len(found) == 1 else "the bundles in it are"
        return f"{uri} is a folder above the bundle: {several} {', '.join(found[:SHOWN])}{more}."
    if uri.endswith(IMPORTED):
        made = f"segray import {quote(uri)} --out BUNDLE"
        return f"{uri} is a file of weights, and a model is a bundle. Make one of it: {made}"
    if not storage.in_bucket(uri) and Path(uri).is_file():
        return f"{uri} is a file, and a model is a folder: give the folder best/ of a finished run."
    if storage.exists(storage.join(uri, CONFIG)):
        return (
            f"{uri} is not a model bundle: save_pretrained wrote it. Make one of it: segray import {quote(uri)} --out "
            "BUNDLE"
        )
    if models := models_below(uri):
        return f"{uri} is not a model bundle: it has no {INFO}. In it are {models}: give one, or segray import it."
    return f"{uri} is not a model bundle: it has no {INFO}. Give the folder best/ of a finished run."


def is_pretrained(uri: str) -> bool:
    """Say whether this is no bundle, but a folder that transformers' save_pretrained wrote."""
    if storage.exists(storage.join(uri, INFO)) or not storage.exists(storage.join(uri, CONFIG)):
        return False
    described = storage.read_json(storage.join(uri, CONFIG))
    return isinstance(described, dict) and "architectures" in described and "model_type" in described


def _bundles_below(uri: str) -> Iterator[str]:
    if storage.in_bucket(uri):
        if storage.exists(storage.join(uri, BEST, INFO)):
            yield storage.join(uri, BEST)
        return
    for pattern in LOOKS_BELOW:
        found = sorted(Path(uri).glob(f"{pattern}/{INFO}"))
        yield from (str(file.parent) for file in found)
        if found:
            return


def kind_of(uri: str) -> str:
    """Say what a folder is: 'bundle', 'transformers' or 'smp', by which save_pretrained wrote it; '' for all else."""
    if storage.exists(storage.join(uri, INFO)):
        return "bundle"
    if is_pretrained(uri):
        return "transformers"
    config = storage.join(uri, CONFIG)
    described = storage.read_json(config) if storage.exists(config) else None
    return "smp" if isinstance(described, dict) and "_model_class" in described else ""


def models_below(uri: str) -> str:
    """Name the first models that lie in a local folder: folders that save_pretrained wrote, else files of weights."""
    if storage.in_bucket(uri) or not Path(uri).is_dir():
        return ""
    folders = [file.parent for file in sorted(Path(uri).glob(f"*/{CONFIG}")) if kind_of(str(file.parent))]
    found = folders or sorted(file for file in Path(uri).iterdir() if file.name.endswith(IMPORTED))
    return ", ".join(map(str, found[:SHOWN])) + ", …" * (len(found) > SHOWN)


def nearly(uri: str) -> str:
    """Return a hint at a ready model, or at what is beside under nearly the same name: the bundle in it, if any."""
    name = storage.name_of(uri)
    if like := difflib.get_close_matches(name, READY_MODELS, 1, cutoff=LIKE):
        return f" Did you mean the ready model {like[0]}?"
    if not storage.in_bucket(uri):
        path = Path(uri)
        while not path.parent.is_dir():
            path = path.parent
        beside = [entry.name for entry in path.parent.iterdir()]
        if like := difflib.get_close_matches(path.name, beside, 1, cutoff=LIKE):
            meant = path.with_name(like[0])
            same = meant / Path(uri).relative_to(path)
            loads = [str(same)] if (same / INFO).exists() else [*_bundles_below(str(same)), *_bundles_below(str(meant))]
            return f" Did you mean {(loads or [str(meant)])[0]}?"
    return (
        " Give the folder best/ of a finished run, a ready model of `segray models`, or hf:OWNER/NAME for a model of "
        "the Hugging Face Hub."
    )
