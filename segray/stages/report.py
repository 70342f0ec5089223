"""Folders of train, sweep, evaluate, compare and label → one self-contained HTML page, for a screen, a phone or paper.

The page fetches nothing: charts are inline SVG, pictures are data: URIs of thumbnails, and the one script, which sorts
and filters, is allowed by its hash. Whatever comes from the folders is escaped; only a few masks are read, however many
there are. The same folders give the same page, but for the line that says when, where and by what it was written.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from hashlib import sha256
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from segray.core import formatting
from segray.core.io import storage
from segray.errors import ConfigError, OutputExists
from segray.pages import charts
from segray.pages.folders import share_of, view_of
from segray.pages.written import written

AVERAGES = {  # scores in the order of the page → what each is
    "miou": ("mIoU", "the mean of the classes' IoU, over the summed pixels of all frames"),
    "image_miou": ("Mean of image mIoU", "the mean of the frames' own mIoU"),
    "micro_iou": ("Micro IoU", "the IoU over the summed pixels of all classes"),
    "fw_iou": ("Frequency-weighted IoU", "the classes' IoU, weighted by their share of the ground truth"),
    "boundary_miou": ("Boundary mIoU", "the mIoU of the pixels near outlines alone"),
    "pixel_accuracy": ("Pixel accuracy", "the share of pixels that are right"),
    "image_pixel_accuracy": ("Mean of image pixel accuracy", "the mean of the frames' own pixel accuracy"),
    "mean_f1": ("Mean F1", "the mean of the classes' F1, which is also called Dice"),
    "image_mean_f1": ("Mean of image mean F1", "the mean of the frames' own mean F1"),
    "mean_sensitivity": (
        "Mean sensitivity",
        "the share of a class's pixels that is found; also called recall",
    ),
    "image_mean_sensitivity": ("Mean of image mean sensitivity", "the mean of the frames' own mean sensitivity"),
    "mean_specificity": ("Mean specificity", "the share of other classes' pixels that is left alone"),
    "image_mean_specificity": ("Mean of image mean specificity", "the mean of the frames' own mean specificity"),
    "mean_precision": ("Mean precision", "the share of the pixels predicted as a class that are of it"),
    "foreground_iou": ("Foreground IoU", "the IoU of the foreground class alone"),
    "foreground_dice": ("Foreground Dice", "the Dice score of the foreground class alone"),
    "ece": ("Expected calibration error", "the mean distance of confidence and accuracy; 0 is perfectly calibrated"),
}


HEADING = re.compile(r'<h3 id="([^"]+)">([^<]+)</h3>')


def report(folders: Sequence[str], out: str, *, overwrite: bool = False) -> str:
    """Write the page of these folders, in their order, to `out`, and return `out`. A folder's files tell its kind.

    Raises ConfigError if there is no folder, DataError for one that cannot be reported, OutputExists.
    """
    if not folders:
        raise ConfigError("Nothing to report; name the folders of runs, evaluations, comparisons or labels.")
    taken = OutputExists(f"{out} exists already. Choose another --out, or pass --overwrite.")
    there = storage.absolute(out)
    if not storage.in_bucket(there) and os.path.isdir(there):  # noqa: PTH112, as Path.is_dir raises for a long name
        raise ConfigError(f"{out} is a folder; name the page's file, such as {out.rstrip('/')}/report.html.")
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
        loader=PackageLoader("segray.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup | int | float) else formatting.clean(value),
    )
    names = ("pct", "score", "change", "short", "number", "count", "counted", "duration")
    env.filters |= {name: getattr(formatting, name) for name in names}
    env.globals |= {"averages": AVERAGES, "matrix_classes": charts.MATRIX_CLASSES, "series": charts.SERIES}
    views = [view_of(place, share_of(len(folders))) | {"at": f"part-{i}"} for i, place in enumerate(folders, 1)]
    for view in views:
        body = env.get_template(f"{view['kind']}.html.j2").render(view=view)
        view |= {"body": Markup(body), "contents": HEADING.findall(body)}
    of_kind = {kind: [view for view in views if view["kind"] == kind] for kind in ("run", "labels", "evaluation")}
    script = asset("report.js")
    return env.get_template("report.html.j2").render(
        written=written(),
        views=views,
        of_kind=of_kind,
        best=max(of_kind["run"], key=lambda view: (view["scores"] or {}).get("miou") or -1, default=None),
        style=Markup(asset("report.css")),
        script=Markup(script),
        script_hash=base64.b64encode(sha256(script.encode()).digest()).decode(),
    )


def asset(name: str) -> str:
    return (resources.files("segray.pages") / "templates" / name).read_text()
