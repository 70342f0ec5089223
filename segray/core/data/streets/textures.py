"""Textures that repeat seamlessly, and their blurs for the distance."""

from __future__ import annotations

import functools

import numpy as np

TEXTURES = (
    *("plain", "bricks", "house", "brickhouse", "glass", "leaves", "boards", "pickets"),
    *("asphalt", "slabs", "clouds", "tiles"),
)
TEXELS, LEVELS = 128, 4  # a texture's side, and how many blurs of it, against shimmer in the distance


def look_up(texture: np.ndarray, u: np.ndarray, v: np.ndarray, texels_per_px: np.ndarray) -> tuple[np.ndarray, ...]:
    """Look up texture numbers and coordinates [H, W]: share of the second colour and tone, float32 [H, W]."""
    level = (texels_per_px > 1.5).astype(np.int32) + (texels_per_px > 3) + (texels_per_px > 6)
    place = (texture * LEVELS + level) * TEXELS + (np.floor(v * TEXELS).astype(np.int32) & (TEXELS - 1))
    place = place * TEXELS + (np.floor(u * TEXELS).astype(np.int32) & (TEXELS - 1))
    mix, tone = _textures()
    return np.take(mix, place), np.take(tone, place)


@functools.cache
def _textures() -> tuple[np.ndarray, np.ndarray]:
    """Make all textures: share of the second colour and tone, level by level blurrier, flat float32."""
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
    """Make noise with a 1 / frequency^power spectrum that repeats seamlessly: mean 0, deviation 1, [128, 128]."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(TEXELS), np.fft.fftfreq(TEXELS)))
    frequency[0, 0] = np.inf
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(TEXELS, TEXELS))) / frequency**power).real
    even: np.ndarray = noise / noise.std()
    return even


def _windows(
    rng: np.random.Generator, u: np.ndarray, v: np.ndarray, first: int, last: int
) -> tuple[np.ndarray, np.ndarray]:
    """Make 4 × 4 windows per texture, texels first to last of 32: share of window, and tone of panes and frames."""
    x, y = u % 32, v % 32
    inside = (x >= first) & (x < last) & (y >= 9) & (y < 27)
    cross = inside & ((x == 16) | (y == 19))
    sill = (x >= first - 1) & (x <= last) & ((y == 8) | (y == 27))
    blind = np.kron(rng.uniform(-0.3, 0.7, (4, 4)), np.ones((32, 32)))
    return inside & ~cross, 0.25 * sill + 0.2 * cross + inside * (blind + 0.02 * (y - 16))
