"""Label Studio: tasks with a prediction each, whose brush strokes are the classes' pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from segray.core.formats.frame import Job, LabelledFrame, Writer, write_items
from segray.core.io import storage
from segray.core.io.locators import image_place

BITS = np.array([3, 4, 8, 16])  # sizes that the length of a run can have
WORD = 8  # bits of a value
CHANNELS = 4  # Label Studio's masks are RGBA, with one value in all


class LabelStudio(Writer):
    """tasks.json, and label_config.xml: the labelling interface that its predictions are made for."""

    made, uses, pictures, result = ("tasks.json", "label_config.xml"), ("image_root",), False, "tasks.json"
    note = "Give the project label_config.xml as its labelling interface, then import tasks.json."

    def __init__(self, job: Job) -> None:
        self.job = job

    def part(self, name: str, frames: Iterator[LabelledFrame]) -> Iterator[dict[str, Any]]:
        for frame in frames:
            classes = frame.row["class_pixels"] or ()
            prediction = {
                "model_version": frame.row["model_id"],
                "score": frame.row["confidence_mean"],
                "result": [self._region(frame, label) for label, pixels in enumerate(classes) if pixels],
            }
            yield {"data": {"image": self._url(frame)}, "predictions": [prediction]}

    def _url(self, frame: LabelledFrame) -> str:
        options = self.job.options
        if options.image_root:
            return f"{options.image_root.rstrip('/')}/{quote(frame.picture)}"
        images = storage.join(self.job.out, "images", frame.picture)
        return images if options.images else image_place(frame.row)

    def _region(self, frame: LabelledFrame, label: int) -> dict[str, Any]:
        runs = encode_brush(frame.mask_hw == label)
        return {
            "id": f"{frame.row['input_id'][:8]}-{label}",
            "type": "brushlabels",
            "from_name": "tag",
            "to_name": "image",
            "original_width": frame.row["width_px"],
            "original_height": frame.row["height_px"],
            "image_rotation": 0,
            "value": {"format": "rle", "rle": runs, "brushlabels": [self.job.space.names[label]]},
        }

    def join(self) -> None:
        colors = ("#{:02X}{:02X}{:02X}".format(*color) for color in self.job.space.colors)
        named = zip(self.job.space.names, colors, strict=True)
        labels = "".join(f'    <Label value={quoteattr(name)} background="{color}"/>\n' for name, color in named)
        self.job.put(
            "label_config.xml",
            '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
            f'  <BrushLabels name="tag" toName="image">\n{labels}  </BrushLabels>\n</View>\n'.encode(),
        )
        with self.job.writing(self.result) as file:
            write_items(file, self.job.records())


def encode_brush(marked_hw: np.ndarray) -> list[int]:
    """Encode marked pixels, bool [H, W], as Label Studio's brush: bytes of thi.ng/rle-pack of RGBA, 255 where marked.

    32 bits of length, 5 of word size - 1, 4 of each of BITS - 1; then of every run a 1, which of BITS its length takes
    (2 bits), length - 1, value. The bytes are those of label_studio_converter.brush.mask2rle.
    """
    flat = marked_hw.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = CHANNELS * np.diff(starts, append=flat.size)
    most = 1 << int(BITS[-1])
    pieces = -(-lengths // most)  # a longer run is cut
    values = np.repeat(np.where(flat[starts], 255, 0), pieces)
    kinds = np.repeat(np.searchsorted(1 << BITS[:-1], lengths), pieces)
    sizes = np.full(len(values), most)
    sizes[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * most
    codes = (((4 | kinds) << BITS[kinds] | sizes - 1) << WORD) | values
    head = (flat.size * CHANNELS << 5 | WORD - 1) << 16 | int("".join(f"{bits - 1:x}" for bits in BITS), 16)
    bits = np.concatenate([_bits(np.array([head]), np.array([53])), _bits(codes, 3 + BITS[kinds] + WORD)])
    # Zeros to a whole byte, and a byte of them where it is whole: as the converter does.
    return np.packbits(np.append(bits, np.zeros(8 - len(bits) % 8, np.uint8))).tolist()


def decode_brush(packed: Sequence[int], pixels: int) -> np.ndarray:
    """Decode a brush to the lengths of runs that are outside, marked, outside, … along the rows, int64.

    A pixel is marked where it is not transparent. ValueError where the bytes are not those of so many pixels.
    """
    bits = np.unpackbits(np.array(packed, np.uint8)).astype("S1").tobytes()
    values, word = int(bits[:32], 2), int(bits[32:37], 2) + 1
    sizes = [int(bits[at : at + 4], 2) + 1 for at in range(37, 53, 4)]
    if values != CHANNELS * pixels or word != WORD:
        raise ValueError("a brush of another size")
    runs: list[tuple[int, int]] = []
    at, done = 53, 0
    while done < values:
        end = at + 3 + sizes[int(bits[at + 1 : at + 3], 2)]
        length, repeated = int(bits[at + 3 : end], 2) + 1, bits[at : at + 1] == b"1"
        at, done = end + WORD * (1 if repeated else length), done + length
        words = (bits[begin : begin + WORD] for begin in range(end, at, WORD))
        runs += [(int(bits_of, 2), length if repeated else 1) for bits_of in words]
    levels, lengths = np.array(runs, np.int64).T
    marked = np.repeat(levels > 0, lengths).reshape(-1, CHANNELS)[:, -1]  # ValueError where a run leads out of it
    edges = np.flatnonzero(np.diff(marked, prepend=False))
    return np.diff(np.concatenate([[0], edges, [pixels]])).astype(np.int64)


def _bits(codes: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Write numbers int64 [N] with their widths in bits as one sequence of bits, uint8, highest bit first."""
    ends = np.cumsum(widths)
    shift = np.repeat(ends, widths) - 1 - np.arange(ends[-1])
    bits: np.ndarray = np.repeat(codes, widths) >> shift & 1
    return bits.astype(np.uint8)
