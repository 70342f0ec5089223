"""Labelling without Ray, for tests: settings with defaults, a plan, its shards one after the other."""

from functools import partial

from segray.core.infer.label_rows import label_rows
from segray.core.labels import parts
from segray.core.labels.plan import PlanReader


def settings_of(inputs, truth=None, every=1, shard_size=4, **more):
    chosen = {"every": every, "fps": None, "limit": None, "sample": None, "shard_size": shard_size}
    places = {"inputs": [str(place) for place in inputs], "truth": truth and str(truth)}
    return {**places, **chosen, "mask_format": "png", "model_id": "model", **more}


def label_shard(plan, shard, predictor):
    label = partial(label_rows, predictor=predictor, batch_size=3)
    return parts.label_shard(plan, PlanReader(plan).shard(shard), shard, label)


def label_all(plan, predictor):
    return [label_shard(plan, shard, predictor) for shard in range(plan.shards)]


def plan_rows(plan):
    return [row for shard in range(plan.shards) for row in PlanReader(plan).shard(shard)]
