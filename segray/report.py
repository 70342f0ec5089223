"""Folders of train, sweep, evaluate, compare and label → one self-contained HTML page, for a screen, a phone or paper.

The page fetches nothing: charts are inline SVG, pictures are data: URIs of thumbnails, and the one script, which sorts
and filters, is allowed by its hash. Whatever comes from the folders is escaped; only a few masks are read, however many
there are. The same folders give the same page, to the byte.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from hashlib import sha256
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from segray import __version__, charts, wording
from segray.core import storage
from segray.errors import ConfigError, OutputExists
from segray.views import share_of, view_of

AVERAGES = {  # scores in the order of the page → what each is
    "miou": ("mIoU", "mean of the classes' IoU, from all frames' summed pixels"),
    "image_miou": ("Mean of image mIoU", "each frame's own mIoU first, then their mean"),
    "micro_iou": ("Micro IoU", "the classes' pixels summed first"),
    "fw_iou": ("Frequency-weighted IoU", "each class's IoU by its share of the true pixels"),
    "boundary_miou": ("Boundary mIoU", "of the pixels near the outlines alone"),
    "pixel_accuracy": ("Pixel accuracy", "share of pixels that are right"),
    "image_pixel_accuracy": ("Mean of image pixel accuracy", "each frame's own first"),
    "mean_f1": ("Mean F1", "F1 of a class is its Dice"),
    "image_mean_f1": ("Mean of image mean F1", "each frame's own first"),
    "mean_sensitivity": ("Mean sensitivity", "of the classes' pixels found; also recall, or class accuracy"),
    "image_mean_sensitivity": ("Mean of image mean sensitivity", "each frame's own first"),
    "mean_specificity": ("Mean specificity", "of the pixels of other classes left alone"),
    "image_mean_specificity": ("Mean of image mean specificity", "each frame's own first"),
    "mean_precision": ("Mean precision", "of the pixels called a class, those that are it"),
    "foreground_iou": ("Foreground IoU", "of the foreground alone"),
    "foreground_dice": ("Foreground Dice", "of the foreground alone"),
    "ece": ("Expected calibration error", "mean distance of confidence and accuracy; 0 is perfectly calibrated"),
}


def report(folders: Sequence[str], out: str, *, overwrite: bool = False) -> str:
    """Write the page of these folders, in their order, to `out`, which is given back; each is known by what it holds.

    Raises ConfigError for no folder at all, DataError for one that cannot be reported, OutputExists.
    """
    if not folders:
        raise ConfigError("Nothing to report: report.runs and report.labels are empty. Name a folder in one.")
    taken = OutputExists(f"{out} exists already. Choose another report.out, or pass --overwrite.")
    there = storage.absolute(out)
    if not overwrite and storage.exists(there):
        raise taken
    page = render(list(folders)).encode()
    if overwrite:
        storage.replace(there, page)
    elif not storage.create(there, page):
        raise taken
    return out


def render(folders: Sequence[str]) -> str:
    """Render the whole page as text."""
    env = Environment(
        loader=PackageLoader("segray"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup | int | float) else wording.clean(value),
    )
    env.filters |= {name: getattr(wording, name) for name in ("pct", "short", "number", "count", "duration")}
    env.globals |= {"averages": AVERAGES, "matrix_classes": charts.MATRIX_CLASSES, "series": charts.SERIES}
    views = [view_of(place, share_of(len(folders))) for place in folders]
    of_kind = {kind: [view for view in views if view["kind"] == kind] for kind in ("run", "labels", "evaluation")}
    script = asset("report.js")
    return env.get_template("report.html.j2").render(
        version=__version__,
        views=views,
        of_kind=of_kind,
        best=max(of_kind["run"], key=lambda view: (view["scores"] or {}).get("miou") or -1, default=None),
        style=Markup(asset("report.css")),
        script=Markup(script),
        script_hash=base64.b64encode(sha256(script.encode()).digest()).decode(),
    )


def asset(name: str) -> str:
    return (resources.files("segray") / "templates" / name).read_text()
