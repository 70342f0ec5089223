"""What a world is made of: classes, shapes and things in metres, weather, colours and forms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)

Color = tuple[float, float, float]
Point = tuple[float, float, float]
Outline = tuple[tuple[float, float], ...]
Limb = tuple[Any, ...]  # colour slot, radius_m, swing, and two ends as (right, up, ahead)

LENGTH_M = 120.0  # the street repeats: what falls behind the camera comes back far ahead, in the haze
BEHIND_M, NEAR_M = 3.0, 0.5
EGO_M, EYE_M = 1.55, 1.35  # the camera's place: in the right lane, as high as a driver's eye
CORNERS = 12  # every outline is padded to as many points, so that one array holds them all
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
