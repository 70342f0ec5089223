"""World → frame: shapes painted far to near, their colours, textures, light and shadows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from segray.core.data.streets.textures import TEXELS, TEXTURES, look_up
from segray.core.data.streets.world import (
    BEHIND_M,
    CORNERS,
    EGO_M,
    EYE_M,
    LENGTH_M,
    NEAR_M,
    OBJECT,
    SKY,
    Street,
    Weather,
    World,
)
from segray.core.samples import Sample


def render(world: World, size: tuple[int, int], time_s: float = 0.0) -> Sample:
    """Render the world at time_s as the camera sees it: image_hwc uint8 RGB [*size, 3], mask_hw uint8 [*size].

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
    """Return the distance [T] of every thing; corners [N, 12, 3] of shapes and of their shadows; frames [N, 3, 3].

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
    """Return the direction towards the sun, for every metre of its height."""
    return np.array([street.mirror * street.sun_xz[0], 1.0, street.sun_xz[1]])


def _outline(ends: np.ndarray, radius_m: np.ndarray, view: np.ndarray) -> tuple[np.ndarray, ...]:
    """Outline limbs with ends [n, 2, 3] seen along view [n, 3]: outlines [n, 12, 3], and unit axes across and along."""
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
    """Return the part of a polygon [n, 3] beyond NEAR_M, as flat pixel coordinates (Sutherland–Hodgman)."""
    points, kept = projected.tolist(), []
    for a, b in zip(points, points[1:] + points[:1], strict=True):
        if a[2] >= NEAR_M:
            kept.append(a)
        if (a[2] >= NEAR_M) != (b[2] >= NEAR_M):
            share = (NEAR_M - a[2]) / (b[2] - a[2])
            kept.append([p + share * (q - p) for p, q in zip(a, b, strict=True)])
    return [c / point[2] for point in kept for c in point[:2]]


def _shine(world: World, ids: np.ndarray, frames: np.ndarray, lens: np.ndarray, shade: np.ndarray) -> np.ndarray:
    """Turn shape numbers [H, W] into RGB uint8 [H, W, 3]: texture, light, shadow on the ground, haze.

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
    mix, tone = look_up(np.take(world.texture, ids), u, v, of(texels) * z_m)
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
    """Return the share of light that a shadow takes; under an overcast sky, the share under a car."""
    return max(0.4, 0.9 * weather.sun[1] / (weather.sun[1] + weather.ambient[1]))


def _light(world: World, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the light [N, 3] on every shape, and its growth [N, 2] along the texture's u and v on round ones."""
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
