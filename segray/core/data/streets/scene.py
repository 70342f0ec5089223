"""Seed → world: what stands, lies and moves in a street, and where."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from segray.core.data.camvid import VOID_ID
from segray.core.data.streets.textures import TEXTURES
from segray.core.data.streets.world import (
    BEHIND_M,
    BICYCLIST,
    BODIES,
    BONNET,
    BUILDING,
    CAR,
    CIRCLE,
    CORNERS,
    EGO_M,
    FENCE,
    GROUND,
    HAIR,
    INK,
    LEAVES,
    LENGTH_M,
    MARKING,
    PAINTS,
    PAVEMENT,
    PEDESTRIAN,
    POLE,
    RIDER,
    ROAD,
    SIGN,
    SIGN_COLORS,
    SIGNS,
    SKIN,
    SKY,
    TERRAIN,
    TREE,
    WALKER,
    WEATHERS,
    WHITE,
    Body,
    Color,
    Limb,
    Point,
    Shape,
    Street,
    Thing,
    World,
)


@functools.lru_cache(maxsize=4)
def world_of(seed: int, bold: float = 1.0) -> World:
    """Build the street `seed`, the same in every process; it is cached, as the frames of a video read it repeatedly.

    bold: how many times larger than life signs are, and poles thicker; people and riders grow by its root.
    """
    rng = random.Random(seed)  # quicker than NumPy where numbers are drawn one by one, and as reproducible
    street = _street(rng, seed)
    things = [*_ground(rng, street), _far_end(rng, street), _bonnet(rng, street)]
    for side in (-1, 1):
        things += [*_frontage(rng, street, side), *_kerbside(rng, street, side, bold)]
        things += _people(rng, street, side, math.sqrt(bold))
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
    """Draw one of the colours, with a slightly different hue and lightness."""
    grey = rng.gauss(0, spread)
    red, green, blue = (min(max(c + grey + rng.gauss(0, spread / 3), 12), 250) for c in rng.choice(colors))
    return red, green, blue


def _blend(a: Color, b: Color, share: float) -> Color:
    red, green, blue = (x + share * (y - x) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _spots(rng: random.Random, gap_m: tuple[float, float], start_m: float = 0.0) -> Iterator[float]:
    """Give places along the whole street, one gap apart."""
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
    """Draw sky, far ground, road, kerbs, pavements, and the lines and patches on the road."""
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
    """Draw trees and houses on the horizon, which the camera never reaches."""
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
    """Draw the bonnet of the camera's own car, seen in most scenes."""
    top = rng.choice((0.74, 0.76, 0.78, 0.3))
    rim = [(0.1 * i, top - 0.11 * (0.1 * i / 0.9) ** 2, 0) for i in range(9, -10, -2)]
    shape = Shape(VOID_ID, [(-0.9, -2, 0), (0.9, -2, 0), *rim], _mixed(rng, PAINTS))
    return Thing(EGO_M, 1.3, [shape], street.speed_m_s, layer=BONNET)


def _frontage(rng: random.Random, street: Street, side: int) -> list[Thing]:
    """Draw what is behind the pavement: houses at the line, houses behind gardens, parks."""
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
    """Draw a house from -width to 0 along the street, its front `back` metres behind the line; roof, shop or door."""
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
    """Choose a fence without its place; points[0] holds its height."""
    texture, height_m = rng.choice((("boards", 1.7), ("pickets", 1.0), ("pickets", 1.3)))
    behind = _mixed(rng, [(70, 86, 54), (90, 92, 86), (120, 116, 106)])
    return Shape(FENCE, [(0, height_m, 0)], _mixed(rng, PAINTS), texture, behind, (2.4, 2 * height_m))


def _border(rng: random.Random, width: float, fence: Shape) -> list[Shape]:
    """Draw a fence along the line, or sometimes a hedge."""
    height = fence.points[0][1]
    if rng.random() < 0.2:
        leaf = _mixed(rng, LEAVES[:4])
        hedge = Shape(TREE, _alongside(0, -width, 0, 0, height), leaf, "leaves", _blend(leaf, INK, 0.5), (3, 3))
        return [hedge._replace(points=_facing(-0.4, 0.4, 0, height, -width)), hedge]
    posts = [((0, 0, -2.4 * i), (0, height + 0.05, -2.4 * i)) for i in range(int(width / 2.4) + 1)]
    panel = fence._replace(points=_alongside(0, -width, 0, 0, height))
    return [panel, *(Shape(FENCE, post, fence.color, radius_m=0.07) for post in posts)]


def _kerbside(rng: random.Random, street: Street, side: int, bold: float) -> list[Thing]:
    """Draw trees, lamps, signs, rails, bollards and bins between road and walkers."""
    rail, gap, x = _fence_style(rng), rng.uniform(4, 8), side * (street.half_m + 0.55)
    bollards = [((0, 0.1, -1.5 * i), (0, 0.95, -1.5 * i)) for i in range(3)]
    kinds: tuple[Callable[[], list[Shape]], ...] = (
        lambda: _tree(rng, 0, 0),
        lambda: _lamp(rng, side, bold),
        lambda: _sign(rng, bold),
        lambda: _border(rng, 5, rail),
        lambda: [Shape(POLE, ends, _mixed(rng, PAINTS[:6]), radius_m=0.09 * bold) for ends in bollards],
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


def _lamp(rng: random.Random, side: int, bold: float) -> list[Shape]:
    high, arm, color = rng.uniform(4.5, 7.5), -side * rng.uniform(0.4, 1.8), _mixed(rng, PAINTS[:6])
    pole, bracket = ((0, 0.1, 0), (0, high, 0), 0.1), ((0, high, 0), (arm, high + 0.3, 0), 0.06)
    limbs = (pole, bracket, ((arm, high + 0.25, 0), (arm * 1.4, high + 0.3, 0), 0.13))
    return [Shape(POLE, (a, b), color, radius_m=radius_m * bold) for a, b, radius_m in limbs]


def _sign(rng: random.Random, bold: float) -> list[Shape]:
    """Draw a disc, a triangle, a board or a traffic light on a pole."""
    high, size = rng.uniform(2.1, 2.9), rng.uniform(0.42, 0.62) * bold
    main, lit = _mixed(rng, SIGN_COLORS), rng.randrange(3)
    lamps = [(60, 56, 54)] * lit + [SIGN_COLORS[(0, 2, 3)[lit]]] + [(60, 56, 54)] * (2 - lit)
    colors = (main, rng.choice((WHITE, main)), rng.choice((WHITE, INK)), SIGN_COLORS[0], WHITE, INK, *lamps)
    faces = [
        Shape(SIGN, [(x * size, high + y * size, 0) for x, y in outline], colors[slot])
        for outline, slot in rng.choice(SIGNS)
    ]
    pole = ((0, 0.1, 0), (0, high + size * 0.9, 0))
    return [Shape(POLE, pole, _mixed(rng, PAINTS[1:5]), radius_m=rng.uniform(0.07, 0.1) * bold), *faces]


def _people(rng: random.Random, street: Street, side: int, scale: float) -> list[Thing]:
    """Draw walkers along the pavement, riders along the road, and a few of both who cross it ahead."""
    things, gap = [], rng.uniform(2.5, 12)
    for z in _spots(rng, (gap, 2 * gap)):
        speed, x = rng.choice((0, 1, 1, -1, -1)) * rng.uniform(0.8, 1.6), rng.uniform(0.9, street.pavement_m - 0.5)
        heading = math.pi * (speed < 0) + rng.gauss(0, 0.2) if speed else rng.uniform(0, 6)
        things.append(Thing(side * (street.half_m + x), z, _walker(rng, heading, 0.3 if speed else 0.04, scale), speed))
    speed, gap = side * rng.uniform(3, 5), rng.uniform(9, 30)
    for z in _spots(rng, (gap, 2 * gap), 3) if rng.random() < 0.55 else ():
        things.append(Thing(side * 2.75, z, _rider(rng, (side < 0) * math.pi + rng.gauss(0, 0.25), scale), speed))
    for z in _spots(rng, (12, 50), 6) if rng.random() < 0.4 else ():
        heading, cross = side * math.pi / 2, side * rng.uniform(1.0, 1.5) / street.speed_m_s
        shapes = _walker(rng, heading, 0.3, scale) if rng.random() < 0.7 else _rider(rng, heading, scale)
        things.append(Thing(side * rng.uniform(3, 8), z, shapes, cross=cross))
    return things


def _walker(rng: random.Random, heading: float, stride_m: float, scale: float) -> list[Shape]:
    """Draw a walker, some with a coat, a bag or both; one in four is a child."""
    limbs = rng.choice((WALKER, WALKER[1:], WALKER[2:], WALKER[2:]))
    tall = rng.choice((0.65, 0.95, 1.0, 1.05)) * rng.gauss(1, 0.03) * scale
    return _figure(rng, PEDESTRIAN, limbs, heading, tall, stride_m)


def _rider(rng: random.Random, heading: float, scale: float) -> list[Shape]:
    return _figure(rng, BICYCLIST, RIDER, heading, scale, 0.0)


def _figure(
    rng: random.Random, label: int, limbs: Sequence[Limb], heading: float, scale: float, stride_m: float
) -> list[Shape]:
    """Draw a figure turned from heading away (0) to heading right (π / 2), each colour slot with its own colour."""
    colors = [_mixed(rng, box) for box in (PAINTS, PAINTS, SKIN, HAIR, PAINTS, [(38, 38, 40)])]
    sin, cos = math.sin(heading) * scale, math.cos(heading) * scale
    shapes = []
    for slot, radius_m, swing, *ends in limbs:
        points = [(right * cos + ahead * sin, up * scale, ahead * cos - right * sin) for right, up, ahead in ends]
        swing_m = (swing * stride_m * sin, swing * stride_m * cos)
        shapes.append(Shape(label, points, colors[slot], radius_m=radius_m * scale, swing_m=swing_m))
    return _far_first(shapes)


def _traffic(rng: random.Random, street: Street) -> list[Thing]:
    """Draw cars ahead in the own lane, which keep their distance; oncoming ones; parked ones."""
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
    """Draw a vehicle heading away (ahead 1) or to the camera (-1), which sees its left (-1) or right flank."""
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
