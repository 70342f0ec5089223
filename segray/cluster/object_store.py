"""Frames and weights in Ray's object store, from which every process of a run reads them without a copy."""

from __future__ import annotations

from typing import Any

from segray.cluster.connect import explain
from segray.cluster.resources import Resources
from segray.core.samples import LabelSpace, Sample, SampleRef, Samples
from segray.sections.training import Resize

BLOCK = 16  # samples per object: few enough to move quickly, many enough to keep the number of objects small
STORE_SHARE = 0.5  # share of a node's object store that decoded samples may take, all splits together


class StoredSamples:
    """Samples decoded once into Ray's object store, read by position from any process without a copy.

    Blocks are kept mapped after their first use, so they stay in the store as long as a run goes on.
    """

    def __init__(self, blocks: list[Any], count: int) -> None:
        self.blocks, self.count = blocks, count
        self._mapped: dict[int, list[Sample]] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        import ray

        block, offset = divmod(index, BLOCK)
        if block not in self._mapped:
            self._mapped[block] = ray.get(self.blocks[block])
        return self._mapped[block][offset]


def fits_stores(decoded_bytes: int, has: Resources) -> bool:
    """Say whether the object store of each node has room for a copy of all frames: every worker reads them all."""
    return decoded_bytes <= STORE_SHARE * has.object_store_bytes


def store_samples(
    refs: tuple[SampleRef, ...], space: LabelSpace, size: tuple[int, int], resize: Resize = "stretch"
) -> Samples:
    """Decode samples once into the object store, for every worker; see fits_stores().

    This uses plain tasks and positions, not a Dataset shard: `get_dataset_shard` was seen to drop a row of 101 on two
    workers, to start an executor anew each epoch, and to hang on two CPUs. Here the order depends on the seed alone.
    """
    import ray

    from segray.core.data import read_sample

    # The pixels stay on the node that decoded them; this process only receives each block's reference, or its error.
    @ray.remote(num_cpus=1, max_retries=2, num_returns=2)
    def decode(block: tuple[SampleRef, ...]) -> tuple[list[Sample], int]:
        return [read_sample(ref, space, size, resize) for ref in block], len(block)

    made: list[Any] = [decode.remote(refs[i : i + BLOCK]) for i in range(0, len(refs), BLOCK)]
    try:
        for _, decoded in made:
            ray.get(decoded)
    except ray.exceptions.RayError as error:
        raise explain(error) from error
    return StoredSamples([block for block, _ in made], len(refs))


def put(value: Any) -> Any:
    """Store a value once in the object store, for `get` in other processes; None stays None."""
    import ray

    return None if value is None else [ray.put(value)]  # in a list: Ray would pass a bare value on


def get(stored: Any) -> Any:
    import ray

    return None if stored is None else ray.get(stored[0])
