"""Progress and results for people: a live bar or spinner on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from segray.cli.app import as_typed
from segray.core.formatting import counted, duration, number, rate, score

if TYPE_CHECKING:
    from segray.core.labels.parts import Receipt
    from segray.core.labels.totals import Summary
    from segray.core.training.checkpoint import EpochRow
    from segray.stages.compare import Compared, Comparison
    from segray.stages.evaluate import Evaluation
    from segray.stages.status import Status
    from segray.trials.leaderboard import LeaderboardRow, SweepResult

LINE_EVERY_S = 10.0  # without a terminal, few lines are enough for a log

WIDTH = None if sys.stdout.isatty() else int(re.sub(r"\D", "", os.environ.get("COLUMNS", "")) or 0) or 160  # of a log
LONGEST_NAME = 40  # characters of a name that is not folded
console = Console(highlight=False, soft_wrap=True, width=WIDTH)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show a spinner on a terminal, and nothing elsewhere."""
    with console.status(what) if console.is_terminal else nullcontext():
        yield


class Advance(Protocol):
    """A Progress with a note beside the bar."""

    def __call__(self, more: int, total: int | None = None, note: str = "") -> None: ...


@contextmanager
def counting(what: str, total: int | None = None) -> Iterator[Advance]:
    """Show a progress bar with the time left on a terminal, else a line every ten seconds."""
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
            task = progress.add_task(what, total=total, note="")
            yield lambda more, total=None, note="": progress.update(task, advance=more, total=total, note=note)
        return
    done, before, last = 0, 0, time.monotonic()

    def advance(more: int, total: int | None = total, note: str = "") -> None:
        nonlocal done, before, last
        done += more
        if (seconds := time.monotonic() - last) >= LINE_EVERY_S:
            # The speed since the line before: until the first, processes started and an earlier run's frames came.
            left_s = total and done > before > 0 and seconds * (total - done) / (done - before)
            left = f", {duration(left_s)} left" if left_s else ""
            before, last = done, time.monotonic()
            say(f"{what} {done}{f' of {total}' if total else ''}  {note}{left}".rstrip())

    yield advance


@contextmanager
def stepping() -> Iterator[Callable[[str, int, int], None]]:
    """Yield the on_step of `train`: a bar of the steps of an epoch on a terminal, else a line every ten seconds."""
    steps = steps_and_left()
    if console.is_terminal:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[steps]}"))
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("Starting", total=None, steps="")
            yield lambda phase, done, of: progress.update(
                task, description=phase, completed=done, total=of, steps=steps(phase, done, of)
            )
        return
    last = time.monotonic()

    def line(phase: str, done: int, of: int) -> None:
        nonlocal last
        said = steps(phase, done, of)
        if time.monotonic() - last >= LINE_EVERY_S:
            last = time.monotonic()
            say(f"{phase}: {said}")

    yield line


def steps_and_left() -> Callable[[str, int, int], str]:
    """Return what says how many steps of a phase are done and, of an epoch's, how long the whole run will still take.

    The speed is that of the epoch's steps after the first one that was told, as it may have waited for the start.
    """
    shown, first, began_s = "", 0, 0.0

    def steps(phase: str, done: int, of: int) -> str:
        nonlocal shown, first, began_s
        if phase != shown:
            shown, first, began_s = phase, done, time.monotonic()
        epochs = re.fullmatch(r"epoch (\d+) of (\d+)", phase)
        to_go = of - done + of * (int(epochs[2]) - int(epochs[1])) if epochs and done > first else 0
        left = f", about {duration(to_go * (time.monotonic() - began_s) / (done - first))} left" if to_go else ""
        return f"step {done} of {of}{left}"

    return steps


class LabelProgress:
    """The Watch of `label`, on a terminal or in a log: files found, frames done, speed, errors and the bottleneck."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._new = self._errors = self._total = 0
        self._planned = self._started = 0.0
        self._seconds: Counter[str] = Counter()

    def found(self, files: int) -> None:
        self._advance(0, note=f"{counted(files, 'file')} found")

    def planned(self, rows: int) -> None:
        self._total, self._planned = rows, time.monotonic()
        if not console.is_terminal:  # where nothing moves for the half minute that processes take to start
            say(f"{counted(rows, 'row is', 'rows are')} planned; what is not there is labelled once Ray has started.")
        self._advance(0, rows)

    def there(self, rows: int) -> None:
        self._advance(rows, self._total)

    def done(self, receipt: Receipt) -> None:
        self._errors += receipt.errors
        self._new += receipt.rows * receipt.created
        self._seconds.update(receipt.seconds)
        now = time.monotonic()
        if not self._started:  # when the first shard began, as processes started before that
            self._started = max(self._planned, now - sum(receipt.seconds.values()))
        speed = self._new / max(1e-9, now - self._started)
        note = f"{rate(speed)} frames/s, {counted(self._errors, 'error')}{self._bottleneck()}"
        self._advance(receipt.rows, self._total, note)

    def note(self, text: str) -> None:
        say(text)

    def _bottleneck(self) -> str:
        """Name the stage that takes longest. Waiting counts as the model's, because shards wait for the model."""
        work = dict(self._seconds)
        if not work:
            return ""
        work["model"] = work.get("model", 0) + work.pop("wait", 0)
        return f", bottleneck: {max(work, key=work.__getitem__)}"


@contextmanager
def labelling() -> Iterator[LabelProgress]:
    """Show the progress of `label`, and yield its watch."""
    with counting("frames") as advance:
        yield LabelProgress(advance)


def say(text: str) -> None:
    """Print a line as it is; bytes of names that are not UTF-8 are escaped."""
    console.print(_printable(text), markup=False)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print columns of text and numbers. Numbers are aligned right, and names of the first column are not folded."""
    console.print(_table(title, columns, rows))


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    drawn = Table(
        title=title, title_justify="left", title_style="bold", header_style="bold", box=SIMPLE_HEAD, pad_edge=False,
        padding=(0, 1, 0, 0),
    )  # fmt: skip
    rows = [list(row) for row in rows]
    for i, name in enumerate(columns):
        numeric = any(isinstance(row[i], int | float) for row in rows)
        # The first column holds what people copy, such as a job or a trial.
        whole = i == 0 and all(len(text(row[i])) <= LONGEST_NAME for row in rows)
        drawn.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=whole)
    for row in rows:
        drawn.add_row(*(text(cell) for cell in row))
    return drawn


def text(cell: object) -> str:
    """Format a cell: three decimals for shares and scores, a dash for unknown values."""
    if cell is None or isinstance(cell, float):
        return score(cell) if cell is None or abs(cell) < 1000 else number(cell)
    return f"{cell:,}" if isinstance(cell, int) else _printable(str(cell))


def _printable(text: str) -> str:
    return as_typed(text).encode(errors="backslashreplace").decode()


def size(count: int) -> str:
    """Format a number of bytes with three digits.

    >>> size(812), size(1010 * 1024), size(1_400_000)
    ('812 bytes', '0.986 MiB', '1.34 MiB')
    """
    units = ("bytes", "KiB", "MiB", "GiB")
    power = next((power for power in range(len(units)) if count < 999.5 * 1024**power), len(units) - 1)
    return f"{number(count / 1024**power)} {units[power]}"


def moment(unix_s: float) -> str:
    """Format a time as local time, to the second."""
    return datetime.fromtimestamp(unix_s).isoformat(" ", "seconds")


def epoch_line(row: EpochRow, epochs: int) -> str:
    """Format a row of history as a line: epoch, loss, scores, speed and time left."""
    from segray.core.training.checkpoint import is_evaluated

    left = (epochs - row["epoch"]) * row["seconds"]
    scores = ""
    if is_evaluated(row):
        miou = "undefined" if row["miou"] is None else f"{row['miou']:.3f}"
        loss = "undefined" if row["val_loss"] is None else f"{row['val_loss']:.3f}"
        scores = f"val loss {loss}  mIoU {miou}  "
    return f"epoch {row['epoch']}/{epochs}  loss {row['loss']:.3f}  {scores}{rate(row['images_per_s'])} images/s" + (
        f"  {duration(left)} left" if left else ""
    )


# Columns of the leaderboard: title → field, in order. If there is no room, columns late in KEPT are left out first.
COLUMNS = {
    "": "pareto", "trial": "trial", "mIoU": "miou", "mean": "miou_mean", "±": "miou_spread", "epochs": "epochs",
    "status": "status", "parameters": "parameters", "G mult-adds": "gmacs", "labels/s": "label_images_per_s",
    "MiB": "peak_memory_mib", "a million": "cost_per_million",
}  # fmt: skip
LEAST = ("", "trial", "mIoU", "status")
KEPT = (
    *LEAST, "labels/s", "mean", "±", "a million", "epochs", "parameters", "MiB", "G mult-adds",
)  # fmt: skip


def show_sweep(result: SweepResult) -> None:
    """Print the leaderboard of a sweep, why trials failed, its advice and its progress."""
    show_leaderboard(result.leaderboard)
    say(result.advice)
    say(result.state)


def show_leaderboard(rows: Sequence[LeaderboardRow]) -> None:
    """Print the trials of a sweep, best first; * marks the Pareto front of mIoU and labelling speed."""
    console.print(leaderboard_table(rows))
    for row in rows:
        if row.error:
            say(f"{row.trial} failed: {row.error}")


def leaderboard_table(rows: Sequence[LeaderboardRow]) -> RenderableType:
    """Build a table of the columns that have values and room; names without room are listed above, by number."""
    fields = COLUMNS | {"mean": "miou_spread"}  # without a spread the mean is the score itself
    known = [title for title in KEPT if title in LEAST or any(getattr(row, fields[title]) is not None for row in rows)]
    fewer = [known[:count] for count in range(len(known), len(LEAST) - 1, -1)]
    for titles in fewer:
        if _width(drawn := _leaderboard(rows, titles, "trial")) <= console.width:
            return drawn
    drawn = next(
        (d for d in (_leaderboard(rows, titles, "rank") for titles in fewer) if _width(d) <= console.width), drawn
    )
    return Group(_folded("\n".join(f"{row.rank}  {row.trial}" for row in rows)), drawn)


def _folded(text: str) -> Text:
    """Return text that folds at the terminal's edge instead of being cut."""
    return Text(text, no_wrap=False, overflow="fold")


def _leaderboard(rows: Sequence[LeaderboardRow], titles: Sequence[str], name: str) -> Table:
    fields = {title: name if title == "trial" else field for title, field in COLUMNS.items() if title in titles}
    cells = [[_cell(row, field) for field in fields.values()] for row in rows]
    return _table("Leaderboard; * on the Pareto front of mIoU and speed", list(fields), cells)


def _cell(row: LeaderboardRow, field: str) -> object:
    value = getattr(row, field)
    if field == "peak_memory_mib" and value is not None:
        return round(value)
    return "*" * value if field == "pareto" else value


def _width(drawn: Table) -> int:
    """Return the width of a table whose cells do not fold."""
    return console.measure(drawn, options=console.options.update_width(10_000)).maximum


@contextmanager
def sweeping(out: str) -> Iterator[Callable[[str, EpochRow], None]]:
    """Yield the on_row of `sweep`: it updates a live leaderboard on a terminal, or prints a line per epoch."""
    from segray.core.io import storage
    from segray.core.training.checkpoint import read_settings
    from segray.errors import StorageError
    from segray.trials.leaderboard import TRIALS, read_sweep

    out = storage.absolute(out)
    devices: set[str] = set()

    def line(row: EpochRow) -> str:
        if (device := row.get("device")) and device not in devices:  # rows of an older version have none
            devices.add(device)
            say(f"Trials train on {device}.")
        return epoch_line(row, read_settings(out).train.epochs)

    if not console.is_terminal:
        yield lambda trial, row: say(f"{trial}  {line(row)}")
        return
    last = _folded("")
    drawn: RenderableType = Spinner("dots", "Starting")

    def draw() -> RenderableType:
        nonlocal drawn
        with suppress(StorageError):  # the store may be unavailable for a moment
            if storage.exists(storage.join(out, TRIALS)):
                now = read_sweep(out)
                drawn = Group(leaderboard_table(now.leaderboard), _folded(now.state), last)
        return drawn

    with Live(get_renderable=draw, refresh_per_second=1, transient=True, console=console):
        yield lambda trial, row: setattr(last, "plain", f"{trial}\n{line(row)}")


def show_labels(out: str, summary: Summary) -> None:
    """Print the result of a labelling run, and its scores where there is ground truth."""
    errors = summary["rows"] - summary["ok"]
    if summary["scores"]:
        scores = summary["scores"]
        rows = [("mIoU", scores["miou"]), ("pixel accuracy", scores["pixel_accuracy"])]
        rows += [("mean F1 (Dice)", scores["mean_f1"]), ("mean sensitivity", scores["mean_sensitivity"])]
        table(
            "Scores against ground truth",
            ("score", "value"),
            [*rows, ("mIoU of the majority class", summary["baseline_miou"])],
        )
    codes = f" ({', '.join(f'{code} {count}' for code, count in summary['errors'].items())})" if errors else ""
    done = f"{counted(summary['ok'], 'frame')} labelled, {counted(errors, 'error')}{codes}"
    say(f"{done}. Masks and metrics are in {out}/labels/*.parquet")
    for code, count in summary.get("notes", {}).items():
        say(f"Labelled, with a note in their rows: {counted(count, 'frame')} ({code}).")


def show_status(out: str, found: Status) -> None:
    """Print the progress of a run as one sentence."""
    facts = [f"{found.done:,} of {counted(found.of, found.unit[:-1])}"]
    facts += [counted(found.frames, "frame")] if found.frames is not None else []
    facts += [counted(found.errors, "error")] if found.errors else []
    facts += [f"{rate(found.images_per_s)} images/s"] if found.images_per_s else []
    facts += [f"best mIoU {found.miou:.3f}"] if found.miou is not None else []
    newest = "part" if found.kind == "label" else "epoch"
    facts += [f"the last {newest} {duration(found.age_s)} ago"] if found.age_s is not None else []
    say(f"{out}: {found.kind}, {'finished' if found.finished else 'not finished'}: {', '.join(facts)}.")


def show_scores(result: Evaluation) -> None:
    """Print the result of `evaluate`: a line per class (F1 is Dice, boundary is boundary IoU), then named averages."""
    scores = result["scores"]
    columns = {  # columns of the table of classes and their mean
        "IoU": (scores["class_iou"], scores["miou"]),
        "precision": (scores["class_precision"], scores["mean_precision"]),
        "sensitivity": (scores["class_sensitivity"], scores["mean_sensitivity"]),
        "specificity": (scores["class_specificity"], scores["mean_specificity"]),
        "F1": (scores["class_f1"], scores["mean_f1"]),
        "boundary": (scores["class_boundary"], scores["boundary_miou"]),
    }
    rows = [[name, *(values[i] for values, _ in columns.values())] for i, name in enumerate(result["classes"])]
    table(
        f"{counted(result['frames'], 'frame')} of {result['scored']}; protocol {result['protocol']}: {result['rule']}",
        ("class", *columns),
        [*rows, ["mean", *(mean for _, mean in columns.values())]],
    )
    say(
        f"Pixel accuracy {text(scores['pixel_accuracy'])}, frequency-weighted IoU {text(scores['fw_iou'])}, "
        f"micro IoU {text(scores['micro_iou'])}; mean of the frames' own mIoU {text(scores['image_miou'])}; "
        f"the best constant guess has mIoU {text(result['baseline_miou'])}."
    )
    if "foreground_iou" in scores:
        say(f"Foreground alone: IoU {text(scores['foreground_iou'])}, Dice {text(scores['foreground_dice'])}.")
    if "category_iou" in scores:
        say("By category: " + ", ".join(f"{name} {text(iou)}" for name, iou in scores["category_iou"].items()) + ".")
    if scores["ece"] is None:
        say("Calibration is undefined: these labels hold no confidence maps (label.confidence_maps).")
    else:
        say(f"Expected calibration error {text(scores['ece'])}: how far confidence is from accuracy.")
    if "calibration" in result:
        fit = result["calibration"]
        table(
            f"Calibrated on {fit['split']}; the model's id is now {fit['model_id']}",
            ("temperature", "error before", "error after", "pixels"),
            [(fit["temperature"], fit["ece_before"], fit["ece_after"], fit["pixels"])],
        )
    if result["undecided_share"]:
        say(f"Undecided: {result['undecided_share']:.1%} of the labelled pixels.")
    for name, values in result["conditions"].items():
        groups = [(value, one["frames"], one["miou"], one["pixel_accuracy"]) for value, one in values.items()]
        table(f"By {name}", (name, "frames", "mIoU", "pixel accuracy"), groups)
    for note in result["notes"]:
        say(note)
    if result["missing"]:
        frames = counted(len(result["missing"]), "frame")
        say(f"Ground truth without a label, not scored: {frames}, such as {result['missing'][0]}.")
    if result["not_covered"]:
        how = "scored as background" if "background" in result["classes"] else "not scored"
        say(f"Classes that this model does not know, {how}: {', '.join(result['not_covered'])}.")


def show_comparison(result: Comparison) -> None:
    """Print the result of `compare`: mean and classes with their intervals, then the images that changed most."""
    verdicts = {None: "undefined", 0: "within noise", 1: "B is better", -1: "A is better"}

    def cells(name: str, one: Compared) -> tuple[object, ...]:
        interval = None if one["low"] is None else f"{one['low']:+.3f} to {one['high']:+.3f}"
        return name, one["a"], one["b"], one["difference"], interval, one["b_better"], verdicts[one["verdict"]]

    rows = [cells(name, one) for name, one in result["classes"].items()]
    columns = ("class", "A", "B", "B − A", "95 % interval", "draws: B better", "")
    table(f"{counted(result['frames'], 'frame')}, IoU", columns, [*rows, cells("mean", result["miou"])])
    changed = [(one["sample_id"], one["a"], one["b"], one["difference"]) for one in result["images"]]
    if changed:
        table("The images that changed most, mIoU", ("image", "A", "B", "B − A"), changed)
    if (mean := result["miou"])["verdict"] is not None:
        say(
            f"mIoU {text(mean['a'])} against {text(mean['b'])}: {verdicts[mean['verdict']]} "
            f"({mean['difference']:+.4f}, 95 % interval {mean['low']:+.4f} to {mean['high']:+.4f})."
        )
