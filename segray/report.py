"""Folders of train, sweep and label → one self-contained HTML page, for a screen, a phone or paper.

The page fetches nothing and runs no script: charts are inline SVG, pictures are data: URIs of thumbnails.
Whatever comes from the folders is escaped; only a few masks are read, however many there are. The same
folders give the same page, to the byte.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from PIL import Image

from segray import __version__
from segray.config import parse_size
from segray.core import images, storage
from segray.core.datasets import places
from segray.core.metrics import Scores, majority_baseline
from segray.core.plan import load_plans, repeated_ids
from segray.core.samples import LabelSpace
from segray.errors import ConfigError, DataError, OutputExists, SegrayError

THUMB_PX = 400  # longer side; about 20 kB a JPEG
GALLERY_ROWS = 24  # in the whole page, shared out over the label folders; 10 MB if all were noise
VIDEOS, VIDEO_POINTS = 4, 240  # charts of class shares in a label folder, and frames drawn in each
MATRIX_CLASSES = 30  # what a page's width can show; the table has all
SERIES = 8  # colours of trials in the template's CSS: --s0 … --s7, the last for all others
COSTS = (  # columns of a leaderboard that one from before they were measured lacks
    *("miou_mean", "miou_spread", "label_images_per_s", "peak_memory_mib", "gmacs", "cost_per_million"),
    *("pareto", "chosen", "settings"),
)
VOID_RGB, WRONG_RGB = (128, 128, 128), (235, 30, 70)

# A label row without its mask, whose bytes are read for the gallery alone.
TEXTS = ("input_id", "uri", "video_uri", "truth_uri", "status", "error_code", "error_message")
NUMBERS = ("time_s", "miou", "entropy_mean")
COLUMNS = pa.schema(
    [(name, pa.string()) for name in TEXTS]
    + [(name, pa.float64()) for name in NUMBERS]
    + [("frame_index", pa.int64()), ("class_pixels", pa.list_(pa.int64()))]
)


class Bundle(NamedTuple):
    """What a model bundle says of itself; facts is its segray.json, confusion int64 [C, C]."""

    facts: dict[str, Any]
    space: LabelSpace
    confusion: np.ndarray


@dataclass(frozen=True)
class Run:
    """A training run (no leaderboard), or a sweep; history by trial; best is None before a first epoch."""

    place: str
    config: str
    leaderboard: list[dict[str, Any]]
    histories: dict[str, list[dict[str, Any]]]
    best: Bundle | None


@dataclass(frozen=True)
class Labels:
    """A label folder: plan, receipt (None while unfinished), and the rows of its parts, without masks."""

    place: str
    plan: dict[str, Any]
    success: dict[str, Any] | None
    parts: list[str]
    rows: pa.Table
    space: LabelSpace


def report(runs: Sequence[str], labels: Sequence[str], out: str, *, overwrite: bool = False) -> Path:
    """Write the page of these run folders (train, sweep) and label folders to `out`.

    Raises ConfigError for no folder at all, DataError for one that cannot be reported, OutputExists.
    """
    if not runs and not labels:
        raise ConfigError("Nothing to report: report.runs and report.labels are empty. Name a folder in one.")
    taken = OutputExists(f"{out} exists already. Choose another report.out, or pass --overwrite.")
    if not overwrite and storage.exists(out):
        raise taken
    page = render([read_run(place) for place in runs], [read_labels(place) for place in labels]).encode()
    if overwrite:
        storage.replace(out, page)
    elif not storage.create(out, page):
        raise taken
    return Path(out)


# Reading


def read_run(place: str) -> Run:
    """A folder written by train (history.jsonl, best/) or by sweep (leaderboard.json, trials/, best/)."""
    files = ("leaderboard.json", "history.jsonl", "best/segray.json")
    board, history, best = (storage.join(place, name) for name in files)
    if not any(map(storage.exists, (board, history, best))):
        raise _no_folder(place, files, "train or segray sweep")
    leaderboard = [dict.fromkeys(COSTS) | row for row in _json(board)] if storage.exists(board) else []
    # Only the last part of a trial's name, as one with .. in it would lead out of the folder.
    trials = {row["trial"]: storage.join(place, "trials", storage.name_of(row["trial"])) for row in leaderboard}
    folders = trials or {storage.name_of(place): place}
    histories = {trial: _history(storage.join(folder, "history.jsonl")) for trial, folder in folders.items()}
    config = storage.join(place, "config.yaml")
    text = storage.read_bytes(config).decode(errors="replace") if storage.exists(config) else ""
    return Run(place, text, leaderboard, histories, _bundle(best) if storage.exists(best) else None)


def read_labels(place: str) -> Labels:
    """A folder written by label: the parts of its plans, with `_SUCCESS` or without."""
    plans = load_plans(place)
    if not plans:
        raise _no_folder(place, ["_segray/plan-00000.json"], "label")
    there = {entry.uri for entry in storage.list_files(storage.join(place, "labels"))}
    parts, rows, planned = [], read_rows([]), 0
    for plan in plans:
        mine = [uri for uri in map(plan.part_uri, range(plan.shards)) if uri in there]
        if plan.number:
            repeated = repeated_ids(plan)
            planned -= len(repeated)
            rows = rows.filter(pc.invert(pc.is_in(rows["input_id"], repeated)))
        parts, rows, planned = parts + mine, pa.concat_tables([rows, read_rows(mine)]), planned + plan.rows
    success_uri = storage.join(place, "_SUCCESS")
    success = _json(success_uri) if storage.exists(success_uri) else None
    if success and success["plans"] != [plan.plan_id for plan in plans]:
        success = None  # it speaks of a run before
    about = {key: getattr(plans[0], key) for key in ("plan_id", "model_id", "settings")}
    about |= {"shards": sum(plan.shards for plan in plans), "rows": planned}
    return Labels(place, about, success, parts, rows, plans[0].label_space)


def read_rows(parts: Iterable[str]) -> pa.Table:
    """COLUMNS of every part, and `part`, the file where the row's mask is."""
    tables = [COLUMNS.append(pa.field("part", pa.string())).empty_table()]
    for uri in parts:
        rows = _parquet(uri, columns=COLUMNS.names).select(COLUMNS.names).cast(COLUMNS)
        tables.append(rows.append_column("part", pa.array([uri] * len(rows), pa.string())))
    return pa.concat_tables(tables)


def _parquet(uri: str, **options: Any) -> pa.Table:
    try:
        with storage.open_read(uri) as file:
            return pq.read_table(file, **options)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"{uri} cannot be read: {reason}. Remove it and run segray label again.") from error


def _bundle(uri: str) -> Bundle:
    facts = _json(uri)
    if missing := {"label_space", "scores", "confusion"} - set(facts):
        raise DataError(f"{uri} has no {min(missing)}; give a bundle that segray train wrote.")
    return Bundle(facts, LabelSpace.from_dict(facts["label_space"]), np.asarray(facts["confusion"], np.int64))


def _history(uri: str) -> list[dict[str, Any]]:
    """One dict an epoch; [] for a trial that failed before its first."""
    lines = storage.read_bytes(uri).splitlines() if storage.exists(uri) else []
    return [_parse(line, f"{uri} line {number}") for number, line in enumerate(lines, start=1)]


def _json(uri: str) -> Any:
    return _parse(storage.read_bytes(uri), uri)


def _parse(data: bytes, source: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise DataError(f"{source} is not JSON: {error}. Restore it, or leave its folder out.") from error


def _no_folder(place: str, files: Sequence[str], command: str) -> DataError:
    rule = f"holds no {' or '.join(files)}" if storage.exists(place) else "does not exist"
    return DataError(f"{place} {rule}. Name a folder that segray {command} wrote.")


# The page


def render(runs: Sequence[Run], labels: Sequence[Labels]) -> str:
    """The whole page as text."""
    env = Environment(
        loader=PackageLoader("segray"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup | int | float) else clean(value),
    )
    env.filters |= {"pct": pct, "short": short, "number": number, "count": count, "duration": duration}
    views = [run_view(run) for run in runs]
    rows_each = min(4, GALLERY_ROWS // (2 * max(1, len(labels))))
    return env.get_template("report.html.j2").render(
        version=__version__,
        best=max(views, key=lambda view: (view["scores"] or {}).get("miou") or -1, default=None),
        runs=views,
        labels=[labels_view(found, rows_each) for found in labels],
        matrix_classes=MATRIX_CLASSES,
        series=SERIES,
    )


def run_view(run: Run) -> dict[str, Any]:
    """What the template shows of a run, charts drawn; scores is None before there is a model."""
    best, name = run.best, storage.name_of(run.place)
    baseline = majority_baseline(best.confusion) if best else None
    view = {
        "run": run,
        "name": name,
        "kind": "Sweep" if run.leaderboard else "Training run",
        "model": next((row["trial"] for row in run.leaderboard if row["chosen"]), run.leaderboard[0]["trial"])
        if run.leaderboard
        else name,
        "trade": trade_chart(run.leaderboard),
        "axes": settings_chart(run.leaderboard),
        "series": {trial: min(i, SERIES - 1) for i, trial in enumerate(run.histories)},
        "curves": learning_curves(run.histories, baseline) if any(run.histories.values()) else {},
        "scores": None,
    }
    if best is None:
        return view
    truth = best.confusion.sum(1)
    return view | {
        "facts": best.facts,
        "scores": best.facts["scores"],
        "baseline": baseline,
        "majority": best.space.names[int(truth.argmax())],
        "matrix": confusion_chart(best.confusion, best.space.names),
        "classes": class_rows(best.space, best.facts["scores"], truth),
        "measured_on": measured_on(run.config, best),
    }


def measured_on(config: str, best: Bundle) -> str:
    """What the scores were counted on, in words, as far as the run's config tells."""
    try:
        settings = yaml.safe_load(config)["data"].items()
    except (yaml.YAMLError, AttributeError, KeyError, TypeError):
        settings = ()
    data = {key: value for key, value in settings if isinstance(value, str)}
    place, size = data.get("root") or data.get("format"), parse_size(best.facts.get("input_size"))
    text = f"the {data.get('val_split', 'validation')} split{f' of {place}' if place else ''}"
    text += f" at {size[1]} × {size[0]} pixels" if size else ""
    return f"{text}: {short(int(best.confusion.sum()))} labelled pixels"


def labels_view(labels: Labels, rows_each: int) -> dict[str, Any]:
    """What the template shows of a label folder; sums are its receipt's, or of its rows while unfinished."""
    rows, success, space = labels.rows, labels.success, labels.space
    ok = rows.filter(pc.equal(rows["status"], "ok"))
    pixels = success["class_pixels"] if success else class_pixels(ok, space.num_classes).sum(0)
    scores = success["scores"] if success else None
    drawn = pc.unique(ok["video_uri"].drop_null()).to_pylist()
    return {
        "labels": labels,
        "name": storage.name_of(labels.place),
        "done": success["rows"] if success else len(rows),
        "ok": success["ok"] if success else len(ok),
        "errors": error_rows(rows),
        "scores": scores,
        "classes": class_rows(space, scores, np.asarray(success["confusion"]).sum(1)) if scores else [],
        "has_truth": ok["miou"].null_count < len(ok),
        "mean_image_miou": pc.mean(ok["miou"]).as_py(),
        "palette": list(zip(space.names, css_colors(space), shares(pixels), strict=True)),
        "galleries": galleries(ok, space, rows_each) if labels.plan["settings"]["mask_format"] != "none" else {},
        "videos": [(storage.name_of(uri), share_chart(ok, uri, space)) for uri in drawn[:VIDEOS]],
        "videos_left": max(0, len(drawn) - VIDEOS),
        "settings": yaml.safe_dump(labels.plan["settings"], allow_unicode=True, sort_keys=False),
    }


def class_rows(space: LabelSpace, scores: Mapping[str, Any], truth: np.ndarray) -> list[dict[str, Any]]:
    """One table row a class: name, color, its scores, and its share of the true pixels [C]."""
    columns = {key: scores[f"class_{key}"] for key in ("iou", "f1", "sensitivity", "specificity")}
    columns |= {"name": space.names, "color": css_colors(space), "share": shares(truth)}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def error_rows(rows: pa.Table) -> list[dict[str, Any]]:
    """Errors by code, the most frequent first, each with the first input that had it."""
    failed = rows.filter(pc.equal(rows["status"], "error"))
    wanted = [([], "count_all"), ("uri", "first"), ("error_message", "first")]
    counts = failed.group_by("error_code", use_threads=False).aggregate(wanted)  # first needs one thread
    return counts.sort_by([("count_all", "descending"), ("error_code", "ascending")]).to_pylist()


def class_pixels(ok: pa.Table, num_classes: int) -> np.ndarray:
    """Predicted pixels, int64 [rows, C]."""
    return pc.list_flatten(ok["class_pixels"]).to_numpy().reshape(-1, num_classes)


def css_colors(space: LabelSpace) -> list[str]:
    return [f"rgb({r},{g},{b})" for r, g, b in space.colors]


def shares(pixels: Iterable[float]) -> list[float]:
    """Each count's share of all; nan where there is nothing."""
    counts = np.asarray(pixels, dtype=np.float64)
    return (counts / counts.sum() if counts.sum() else counts * math.nan).tolist()


# Gallery


def galleries(ok: pa.Table, space: LabelSpace, each: int) -> dict[str, list[dict[str, Any]]]:
    """Best and worst by mIoU where there is truth; else a spread of frames and the most uncertain ones."""
    miou, entropy = ok["miou"].to_numpy(), ok["entropy_mean"].to_numpy()
    scored = np.flatnonzero(np.isfinite(miou))
    if len(scored):
        order = scored[np.argsort(miou[scored], kind="stable")]
        worst = order[:each]
        chosen = {"Best frames": order[len(worst) :][::-1][:each], "Worst frames": worst}
    else:
        spread = np.unique(np.linspace(0, len(ok) - 1, each).round().astype(int)) if len(ok) else []
        rest = [i for i in np.argsort(-entropy, kind="stable") if i not in spread]
        chosen = {"A spread of frames": spread, "Most uncertain frames": apart(rest, each, len(ok))}
    return {
        title: [gallery_row(row, space) for row in ok.take(picks).to_pylist()]
        for title, picks in chosen.items()
        if len(picks)
    }


def apart(order: Iterable[int], most: int, total: int) -> list[int]:
    """The first `most` positions of an order, without near neighbours: frames of one moment look alike."""
    picks: list[int] = []
    for i in order:
        if len(picks) < most and all(abs(i - other) > total // (4 * most) for other in picks):
            picks.append(int(i))
    return picks


def gallery_row(row: dict[str, Any], space: LabelSpace) -> dict[str, Any]:
    """A label row with its pictures by caption; a source or truth that cannot be read becomes a note."""
    notes: list[str] = []
    wanted = ["mask", "mask_rle", "height_px", "width_px"]
    found = _parquet(row["part"], columns=wanted, filters=[("input_id", "=", row["input_id"])])
    pred = places.mask_of(found.to_pylist()[0], row["input_id"])
    scale = min(1.0, THUMB_PX / max(pred.shape))
    size = tuple(max(1, round(side * scale)) for side in pred.shape)
    image = _try(lambda: images.resize_image(read_image(row), size), notes)
    truth = _try(lambda: images.resize_mask(read_truth(row, space), size), notes) if row["truth_uri"] else None
    name = storage.name_of(row["uri"])
    name += f" · frame {row['frame_index']}" if row["video_uri"] else ""
    return row | {"name": name, "notes": notes, "panels": panels(image, truth, images.resize_mask(pred, size), space)}


def panels(image: np.ndarray | None, truth: np.ndarray | None, pred: np.ndarray, space: LabelSpace) -> dict[str, str]:
    """Data URIs of Image, Truth, Prediction, Errors, or of Image, Prediction, Overlay; less what is missing."""
    found = {} if image is None else {"Image": jpeg(image)}
    if truth is not None:
        found["Truth"] = mask_png(truth, space)
    found["Prediction"] = mask_png(pred, space)
    if truth is not None:
        found["Errors"] = jpeg(error_map(image, truth, pred, space.ignore_index))
    elif image is not None:
        found["Overlay"] = jpeg(images.overlay(image, pred, space.colors))
    return found


def error_map(image: np.ndarray | None, truth: np.ndarray, pred: np.ndarray, ignore_index: int) -> np.ndarray:
    """RGB [H, W, 3]: wrong pixels red and void grey, over the dimmed image (black without one)."""
    grey = np.zeros((*pred.shape, 1)) if image is None else image.mean(2, keepdims=True) * 0.45
    shown = np.repeat(grey, 3, axis=2).astype(np.uint8)
    shown[truth != pred] = WRONG_RGB
    shown[truth == ignore_index] = VOID_RGB
    return shown


def read_image(row: Mapping[str, Any]) -> np.ndarray:
    return places.read_image(places.image_place(row))


def read_truth(row: Mapping[str, Any], space: LabelSpace) -> np.ndarray:
    uri = row["truth_uri"]
    return space.apply(images.decode_mask(storage.read_bytes(uri), uri), uri)


def jpeg(image_hwc: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(image_hwc).save(out, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def mask_png(mask_hw: np.ndarray, space: LabelSpace) -> str:
    # 256 colours, as a shorter palette would store fewer bits a pixel and lose the id of void.
    colors = [*space.colors, *[(0, 0, 0)] * (256 - space.num_classes)]
    return f"data:image/png;base64,{base64.b64encode(images.encode_mask(mask_hw, colors)).decode()}"


def _try(read: Callable[[], np.ndarray], notes: list[str]) -> np.ndarray | None:
    try:
        return read()
    except SegrayError as error:
        notes.append(str(error))
        return None


# Charts. Placeholder colours become the template's CSS variables, and so follow light, dark and print.

INK, MUTED, LINE, ACCENT = "#0a0bf0", "#0a0bf1", "#0a0bf2", "#0a0bf3"
TRIALS = [f"#0a0b{i:02x}" for i in range(SERIES)]
CSS = {INK: "ink", MUTED: "muted", LINE: "line", ACCENT: "accent"} | {c: f"s{i}" for i, c in enumerate(TRIALS)}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "segray",
    "text.parse_math": False,  # a class may be called $x$
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    **{f"{axis}tick.labelcolor": MUTED for axis in "xy"},
    **{f"{axis}tick.color": LINE for axis in "xy"},
    "axes.edgecolor": LINE,
    "grid.color": LINE,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.markersize": 3,
}


@contextmanager
def drawing() -> Iterator[None]:
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the reader's browser has the font
        yield


def to_svg(fig: Figure) -> Markup:
    """Transparent, coloured by CSS, with ids that no other chart of the page has."""
    out = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    fig.savefig(out, format="svg", transparent=True, metadata=nothing)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", out.getvalue()[out.getvalue().index("<svg") :])
    svg = re.sub("|".join(CSS), lambda found: f"var(--{CSS[found[0]]})", svg)
    prefix = f"c{sha256(svg.encode()).hexdigest()[:8]}-"
    return Markup(re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{prefix}", svg))


def learning_curves(histories: Mapping[str, list[dict[str, Any]]], baseline: Scores | None) -> dict[str, Markup]:
    """Charts by title, one line a trial; a lone run shows its training loss too, dotted."""
    titles = {"Loss": "val_loss", "mIoU": "miou", "Pixel accuracy": "pixel_accuracy"}
    return {title: _curve(histories, key, baseline) for title, key in titles.items()}


def _curve(histories: Mapping[str, list[dict[str, Any]]], key: str, baseline: Scores | None) -> Markup:
    with drawing():
        fig = Figure(figsize=(3.6, 2.35))
        ax = fig.subplots()
        ax.grid(axis="y")
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        for i, rows in enumerate(histories.values()):
            epochs, color = [row["epoch"] for row in rows], TRIALS[min(i, SERIES - 1)]
            if key == "val_loss" and len(histories) == 1:
                ax.plot(epochs, [row["loss"] for row in rows], ":", color=color)
            values = np.array([row[key] for row in rows], dtype=float)  # None becomes nan, a gap
            ax.plot(epochs, values, "o-", color=color, zorder=3 - i / 100)  # the best on top
        if key != "val_loss":
            ax.set_ylim(bottom=0)
            ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            if baseline:
                ax.axhline(getattr(baseline, key), color=MUTED, linewidth=1, linestyle="--")
        return to_svg(fig)


def trade_chart(rows: Sequence[Mapping[str, Any]]) -> Markup | None:
    """mIoU against labelling speed, a point a trial, a line through the Pareto front; None with fewer than two."""
    rows = [row for row in rows if row["miou"] is not None and row["label_images_per_s"]]
    if len(rows) < 2:
        return None
    front = sorted((row["label_images_per_s"], row["miou_mean"], row["trial"]) for row in rows if row["pareto"])
    with drawing():
        fig = Figure(figsize=(7.2, 3.4))
        ax = fig.subplots()
        ax.grid()
        speeds, scores = ([row[key] for row in rows] for key in ("label_images_per_s", "miou_mean"))
        ax.scatter(speeds, scores, color=MUTED, s=18)
        ax.plot([speed for speed, _, _ in front], [score for _, score, _ in front], "o-", color=ACCENT, markersize=6)
        for speed, score, trial in front:
            ax.annotate(clean(trial)[:48], (speed, score), xytext=(4, 6), textcoords="offset points", fontsize=8)
        ax.set_xscale("log")
        ax.set_xlim(min(speeds) / 1.3, max(speeds) * 3)  # room for the names
        ax.margins(y=0.2)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        ax.set(xlabel="labels images/s", ylabel="mIoU")
        return to_svg(fig)


def settings_chart(rows: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Parallel coordinates: a line a trial through each setting that differs, to its mIoU; None with under two."""
    rows = [row for row in rows if row["miou"] is not None and row["settings"]]
    settings = [json.loads(row["settings"]) for row in rows]
    known = [key for key in (settings[0] if settings else ()) if key != "train.seed"]
    keys = [key for key in known if len({str(s[key]) for s in settings}) > 1]
    if len(keys) < 2 or len(rows) < 3:
        return None
    best = max(row["miou"] for row in rows) or 1
    with drawing():
        fig = Figure(figsize=(max(7.2, 1.8 * len(keys)), 3.2))
        ax = fig.subplots()
        columns = [_places([s[key] for s in settings]) for key in keys]
        lines = np.array([*columns, [row["miou"] / best for row in rows]]).T
        for row, line in zip(rows, lines, strict=True):
            ax.plot(line, "-", color=ACCENT, alpha=0.12 + 0.88 * (row["miou"] / best) ** 4, linewidth=1.6)
        for x, key in enumerate(keys):
            for y, name in sorted({(y, _short_name(s[key])) for y, s in zip(columns[x], settings, strict=True)}):
                ax.text(x, y, f" {name}", fontsize=8, va="center")
            ax.axvline(x, color=LINE, linewidth=1, zorder=0)
        for row, line in zip(rows, lines, strict=True):
            ax.text(len(keys), line[-1], f" {row['miou']:.1%}", fontsize=8, va="center")
        ax.set_xticks(range(len(keys) + 1), [*(key.rpartition(".")[2] for key in keys), "mIoU"])
        ax.set_yticks([])
        ax.set(xlim=(-0.1, len(keys) + 0.4), ylim=(-0.05, 1.05))
        ax.spines[:].set_visible(False)
        return to_svg(fig)


def _places(values: Sequence[Any]) -> list[float]:
    """Where values stand on an axis of 0..1: numbers by their logarithm, others evenly, in order."""
    if all(isinstance(value, int | float) and value > 0 for value in values):
        logs = np.log(np.array(values, dtype=float))
        return ((logs - logs.min()) / max(np.ptp(logs), 1e-9)).tolist()
    names = sorted({str(value) for value in values})
    return [names.index(str(value)) / max(1, len(names) - 1) for value in values]


def _short_name(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else clean(value)[:24]


def confusion_chart(confusion: np.ndarray, names: Sequence[str]) -> Markup:
    """Row-normalised heat map of the most frequent classes: rows truth, columns prediction."""
    truth = confusion.sum(1)
    top = np.sort(np.argsort(-truth, kind="stable")[:MATRIX_CLASSES])
    share = confusion[np.ix_(top, top)] / np.maximum(truth[top, None], 1)
    labels, n = [clean(names[i])[:24] for i in top], len(top)
    text_inch = 0.07 * max(map(len, labels))
    with drawing():
        fig = Figure(figsize=(0.7 + 0.4 * n + 1.5 * text_inch, 0.7 + 0.4 * n + 0.7 * text_inch))
        ax = fig.subplots()
        for (row, column), value in np.ndenumerate(share):
            if value >= 0.005:
                alpha = 0.06 + 0.7 * value
                ax.add_patch(Rectangle((column, row), 1, 1, facecolor=ACCENT, alpha=alpha, linewidth=0))
                ax.text(column + 0.5, row + 0.54, f"{value:.0%}"[:-1], ha="center", va="center", fontsize=8)
        ticks = np.arange(n) + 0.5
        ax.set_xticks(ticks, labels, rotation=45, ha="left", rotation_mode="anchor")
        ax.set_yticks(ticks, labels)
        ax.set(xlim=(0, n), ylim=(n, 0), aspect="equal", xlabel="predicted", ylabel="true class")
        ax.xaxis.set_label_position("top")
        ax.tick_params(length=0, labeltop=True, labelbottom=False, labelcolor=INK)
        return to_svg(fig)


def share_chart(ok: pa.Table, uri: str, space: LabelSpace) -> Markup:
    """Predicted class shares of one video over time, stacked; a long one by evenly spread frames."""
    rows = ok.filter(pc.equal(ok["video_uri"], uri)).sort_by("frame_index")
    rows = rows.take(np.unique(np.linspace(0, len(rows) - 1, VIDEO_POINTS).round().astype(int)))
    time_s, pixels = rows["time_s"].to_numpy(), class_pixels(rows, space.num_classes)
    share = pixels / np.maximum(pixels.sum(1, keepdims=True), 1)
    with drawing():
        fig = Figure(figsize=(10, 2.6))
        ax = fig.subplots()
        ax.stackplot(time_s, share.T, colors=np.array(space.colors) / 255, linewidth=0)
        ax.set(xlim=(time_s[0], max(time_s[-1], time_s[0] + 0.01)), ylim=(0, 1), xlabel="seconds")
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        return to_svg(fig)


# Text


def clean(value: Any) -> str:
    """Text without the control, bidi and surrogate characters that could hide or reorder what is shown."""
    kept = (c for c in str(value) if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    return "–" if value is None else "".join(kept)


def _or_dash(text: Callable[[float], str]) -> Callable[[float | None], str]:
    """An undefined number is shown as a dash."""
    return lambda value: "–" if value is None or not math.isfinite(value) else text(value)


def _short(value: float) -> str:
    for scale, unit in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if value >= scale:
            return f"{value / scale:.1f}\N{NO-BREAK SPACE}{unit}"
    return f"{value:.0f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"


pct = _or_dash(lambda share: f"{share * 100:.1f}%")  # 0.4123 → 41.2%
count = _or_dash(lambda value: f"{value:,}")  # 14328354 → 14,328,354
number = _or_dash(lambda value: f"{value:.3g}")  # three digits that matter: 12.1, 0.001
short = _or_dash(_short)  # 14328354 → 14.3 million
duration = _or_dash(_duration)  # 3725 → 1 h 02 min
