"""Numbers → inline SVG by matplotlib. Placeholder colours become the page's CSS variables: light, dark and print."""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from segray.core.formatting import clean
from segray.core.labels.digest import Track, quartiles
from segray.core.metrics import Scores
from segray.core.samples import LabelSpace
from segray.core.scoring import reliability
from segray.core.training.checkpoint import is_evaluated

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from segray.core.training.checkpoint import EpochRow, History
    from segray.stages.compare import Compared
    from segray.trials.leaderboard import LeaderboardRow

MATRIX_CLASSES = 30  # limit of a page's width; the table shows all
SERIES = 8  # colours of trials in the page's CSS: --s0 … --s7, the last for all others
CURVES, DOTS = 60, 40  # trials whose curves are drawn; epochs up to which each is a dot
PX_PER_PT = 1.25  # makes all texts of charts the same size on the page
MIOU_BARS = 25

INK, MUTED, LINE, ACCENT, CARD = "#0a0bf0", "#0a0bf1", "#0a0bf2", "#0a0bf3", "#0a0bf4"
TRIALS = [f"#0a0b{i:02x}" for i in range(SERIES)]
CSS = {INK: "ink", MUTED: "muted", LINE: "line", ACCENT: "accent", CARD: "card"} | {
    c: f"s{i}" for i, c in enumerate(TRIALS)
}
STYLE: dict[Any, Any] = {  # keys are matplotlib's names
    "svg.fonttype": "none",
    "svg.hashsalt": "segray",
    "text.parse_math": False,  # a class may be called $x$
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "font.sans-serif": ["DejaVu Sans"],  # only for measuring: the page's CSS names the real fonts
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
    """Draw a transparent SVG, coloured by CSS, wide enough for its texts, with ids unique on the page."""
    out = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    fig.savefig(out, format="svg", transparent=True, metadata=nothing)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", out.getvalue()[out.getvalue().index("<svg") :])
    svg = re.sub("|".join(CSS), lambda found: f"var(--{CSS[found[0]]})", svg)
    svg = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), svg)
    svg = svg.replace(
        "<svg ", f'<svg style="--width:{fig.get_figwidth() * 72 * PX_PER_PT:.0f}px;max-width:var(--width)" ', 1
    )
    prefix = f"c{sha256(svg.encode()).hexdigest()[:8]}-"
    return Markup(re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{prefix}", svg))


def learning_curves(histories: Mapping[str, History], baseline: Scores | None) -> dict[str, Markup]:
    """Draw charts by title, a line per trial: of the validation split, and for a lone run dotted of training frames."""
    titles = {"Loss": ("val_loss", "loss"), "mIoU": ("miou", "train_miou")}
    titles["Pixel accuracy"] = ("pixel_accuracy", "train_pixel_accuracy")
    return {title: _curve(histories, *keys, baseline) for title, keys in titles.items()}


def _curve(histories: Mapping[str, History], key: str, train_key: str, baseline: Scores | None) -> Markup:
    with drawing():
        fig = Figure(figsize=(3.6, 2.35))
        ax = fig.subplots()
        ax.grid(axis="y")
        for i, rows in enumerate(list(histories.values())[:CURVES]):
            epochs, color = [row["epoch"] for row in rows], TRIALS[min(i, SERIES - 1)]
            if len(histories) == 1:
                ax.plot(epochs, _values(rows, train_key), ".:" if len(rows) == 1 else ":", color=color)
            known = [row for row in rows if is_evaluated(row)]
            line = "o-" if len(known) <= DOTS else "-"
            ax.plot(
                [row["epoch"] for row in known], _values(known, key), line, color=color, zorder=3 - i / 100
            )  # the best is drawn on top
        if key != "val_loss":
            ax.set_ylim(bottom=0)
            if baseline:
                ax.axhline(getattr(baseline, key), color=MUTED, linewidth=1, linestyle="--")
        axis_of_epochs(ax)
        return to_svg(fig)


def axis_of_epochs(ax: Axes) -> None:
    """Put ticks at whole epochs of what is drawn, and room beside an epoch that is the only one."""
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    low, high = ax.get_xlim()
    if high - low < 1:
        ax.set_xlim(low - 0.5, high + 0.5)


def _values(rows: Sequence[EpochRow], key: str) -> np.ndarray:
    """Return the values of a key; undefined and unknown ones are nan, which leaves gaps in the line."""
    return np.array([row.get(key) for row in rows], dtype=float)


def trade_chart(rows: Sequence[LeaderboardRow]) -> Markup | None:
    """Draw mIoU against labelling speed, a point per trial, a line through the Pareto front; None below two points."""
    known = [(row, row.label_images_per_s, row.miou_mean) for row in rows if row.miou is not None]
    points = [(speed, score, row) for row, speed, score in known if speed and score is not None]
    if len(points) < 2:
        return None
    front = sorted((speed, score, row.trial) for speed, score, row in points if row.pareto)
    with drawing():
        fig = Figure(figsize=(5.2, 3.2))
        ax = fig.subplots()
        ax.grid()
        speeds = [speed for speed, _, _ in points]
        ax.scatter(speeds, [score for _, score, _ in points], color=MUTED, s=18)
        ax.plot([speed for speed, _, _ in front], [score for _, score, _ in front], "o-", color=ACCENT, markersize=6)
        for speed, score, trial in front:
            ax.annotate(clean(trial)[:48], (speed, score), xytext=(4, 6), textcoords="offset points", fontsize=8)
        ax.set_xscale("log")
        ax.set_xlim(min(speeds) / 1.3, max(speeds) * 3)  # room for the names
        ax.margins(y=0.2)
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_locator(MaxNLocator(6))
        ax.set(xlabel="labels/s", ylabel="mIoU")
        return to_svg(fig)


def settings_chart(rows: Sequence[LeaderboardRow]) -> Markup | None:
    """Draw parallel coordinates: a line per trial through each setting that differs, to its mIoU; None below two."""
    known = [(row.miou, json.loads(row.settings)) for row in rows if row.miou is not None and row.settings]
    scores, settings = [score for score, _ in known], [one for _, one in known]
    varied = [key for key in (settings[0] if settings else ()) if key != "train.seed"]
    keys = [key for key in varied if len({str(s[key]) for s in settings}) > 1]
    if len(keys) < 2 or len(scores) < 3:
        return None
    best = max(scores) or 1
    with drawing():
        fig = Figure(figsize=(max(5.2, 1.3 * (len(keys) + 1)), 3.2))
        ax = fig.subplots()
        columns = [_places([s[key] for s in settings]) for key in keys]
        beside: dict[str, Any] = {
            "fontsize": 8,
            "va": "center",
            "bbox": {"facecolor": CARD, "edgecolor": "none", "pad": 1.5},
        }
        lines = np.array([*columns, [score / best for score in scores]]).T
        for score, line in zip(scores, lines, strict=True):
            ax.plot(line, "-", color=ACCENT, alpha=0.12 + 0.88 * (score / best) ** 4, linewidth=1.6)
        for x, key in enumerate(keys):
            for y, name in sorted({(y, _short_name(s[key])) for y, s in zip(columns[x], settings, strict=True)}):
                ax.text(x, y, name, **beside)
            ax.axvline(x, color=LINE, linewidth=1, zorder=0)
        for score, line in zip(scores, lines, strict=True):
            ax.text(len(keys), line[-1], f"{score:.3f}", **beside)
        ax.set_xticks(range(len(keys) + 1), [*(key.rpartition(".")[2] for key in keys), "mIoU"])
        ax.set_yticks([])
        ax.set(xlim=(-0.1, len(keys) + 0.4), ylim=(-0.05, 1.05))
        ax.spines[:].set_visible(False)
        return to_svg(fig)


def _places(values: Sequence[Any]) -> list[float]:
    """Place values on an axis of 0..1: numbers by their logarithm, others evenly, in order."""
    if all(isinstance(value, int | float) and value > 0 for value in values):
        logs = np.log(np.array(values, dtype=float))
        places: list[float] = ((logs - logs.min()) / max(np.ptp(logs), 1e-9)).tolist()
        return places
    names = sorted({str(value) for value in values})
    return [names.index(str(value)) / max(1, len(names) - 1) for value in values]


def _short_name(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else clean(value)[:24]


def confusion_chart(confusion: np.ndarray, names: Sequence[str]) -> Markup:
    """Draw a row-normalised heat map of the most frequent classes: rows truth, columns prediction."""
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


def reliability_chart(curve: Sequence[reliability.Bin]) -> Markup:
    """Draw a reliability curve and each bin's share of the pixels."""
    with drawing():
        fig = Figure(figsize=(3.6, 2.9))
        ax = fig.subplots()
        reliability.draw(ax, curve, MUTED, ACCENT)
        return to_svg(fig)


def miou_chart(counts: np.ndarray) -> Markup:
    """Draw the histogram of the frames' own mIoU, int64 [MIOU_BINS], with the middle half highlighted."""
    bars = counts.reshape(MIOU_BARS, -1).sum(1)
    edges = np.linspace(0, 1, MIOU_BARS + 1)
    _, low, median, high, _ = quartiles(counts)
    with drawing():
        fig = Figure(figsize=(3.6, 2.9))
        ax = fig.subplots()
        ax.grid(axis="y")
        ax.axvspan(low, high, color=ACCENT, alpha=0.12, linewidth=0)
        ax.axvline(median, color=ACCENT, linewidth=1)
        ax.bar(edges[:-1], bars, width=0.9 / MIOU_BARS, align="edge", color=ACCENT)
        ax.set(xlim=(0, 1), xlabel="mIoU of a frame", ylabel="frames")
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        return to_svg(fig)


def track_chart(track: Track, space: LabelSpace) -> Markup:
    """Draw a video's predicted class shares over time, stacked, and below them its flicker if it is known."""
    known = np.flatnonzero(np.isfinite(track.time_s))
    known = known[np.argsort(track.time_s[known], kind="stable")]
    time_s, pixels, flicker = track.time_s[known], track.pixels[known], track.flicker[known]
    share = pixels / np.maximum(pixels.sum(1, keepdims=True), 1)
    flickers = bool(np.isfinite(flicker).any())
    with drawing():
        fig = Figure(figsize=(11.1, 3.4 if flickers else 2.4))
        axes = fig.subplots(1 + flickers, 1, sharex=True, squeeze=False, height_ratios=[3, 1][: 1 + flickers])[:, 0]
        axes[0].stackplot(time_s, share.T, colors=np.array(space.colors) / 255, linewidth=0)
        axes[0].set(xlim=(time_s[0], max(time_s[-1], time_s[0] + 0.01)), ylim=(0, 1), ylabel="class shares")
        if flickers:
            axes[1].grid(axis="y")
            axes[1].plot(time_s, flicker, "-", color=ACCENT, linewidth=1)
            axes[1].set(ylim=(0, None), ylabel="flicker")
        for ax in axes:
            ax.yaxis.set_major_formatter(PercentFormatter(1))
        axes[-1].set_xlabel("seconds")
        return to_svg(fig)


def difference_chart(rows: Mapping[str, Compared]) -> Markup:
    """Draw differences B − A by name as dots with 95 % intervals; intervals that contain 0 are grey."""
    known = {name: row for name, row in rows.items() if row["difference"] is not None}
    with drawing():
        fig = Figure(figsize=(5.2, 0.8 + 0.26 * len(known)))
        ax = fig.subplots()
        ax.grid(axis="x")
        ax.axvline(0, color=MUTED, linewidth=1)
        for y, row in enumerate(known.values()):
            color = ACCENT if row["verdict"] else MUTED
            low, middle, high = (end or 0 for end in (row["low"], row["difference"], row["high"]))
            ax.plot([low, high], [y, y], "-", color=color, linewidth=2)
            ax.plot(middle, y, "o", color=color, markersize=5)
        ax.set_yticks(range(len(known)), [clean(name)[:24] for name in known])
        ax.invert_yaxis()
        ax.set_xlabel("IoU, B − A")
        ax.tick_params(axis="y", length=0, labelcolor=INK)
        return to_svg(fig)
