"""Which frames come first: each scene's best before the second of any other, and never two neighbours."""

from collections import defaultdict

import numpy as np
import pytest

from segray.core.labels.ranking import spread


def by_comparing_all(scores, scenes, at, count, apart):
    """What spread() promises, written as it is said: each frame is compared with all that its scene has so far."""
    taken, ranked = defaultdict(list), []
    for i in np.argsort(-scores, kind="stable").tolist():
        if all(abs(at[i] - other) >= apart for other in taken[scenes[i]]):
            ranked.append((len(taken[scenes[i]]), i))
            taken[scenes[i]].append(at[i])
    chosen = {i for _, i in sorted(ranked, key=lambda one: one[0])[:count]}
    return [i for _, i in ranked if i in chosen]


@pytest.mark.parametrize("apart", [0, 0.1, 1, 2.5, 1e9])
@pytest.mark.parametrize("seed", range(8))
def test_neighbours_alone_are_compared_and_nothing_changes(seed, apart):
    draw = np.random.default_rng(seed)
    frames = int(draw.integers(1, 300))
    scores = draw.integers(0, 40, frames) / 40  # many are equal
    scenes = draw.integers(0, draw.integers(1, 30), frames).astype(np.uint64)
    at = draw.integers(0, 100, frames) / draw.choice([1, 10, 3])
    for count in (0, 1, 5, 20, 1000):
        wanted = by_comparing_all(scores, scenes, at, count, apart)
        assert spread(scores, scenes, at, count, apart) == wanted


def test_of_many_scenes_and_of_many_frames_the_best_are_found_at_once():
    frames = 50_000
    scores = np.random.default_rng(0).random(frames)
    numbers = np.arange(frames)
    alone = spread(scores, numbers.astype(np.uint64), numbers.astype(float), 50, 2)
    assert alone == np.argsort(-scores)[:50].tolist()
    one = spread(scores, np.zeros(frames, np.uint64), numbers.astype(float), 10_000, 2)
    assert len(one) == 10_000
    assert np.diff(np.sort(one)).min() >= 2
