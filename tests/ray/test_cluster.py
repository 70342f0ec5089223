"""A Ray of segray's own, as its settings ask for it."""

import json
import subprocess
import sys

import pytest

FILL = """
import json, sys
from pathlib import Path
import numpy as np
import ray
from segray.cluster import connect
from segray.sections.labelling import ClusterSection

folder = Path(sys.argv[1])
with connect.connected(ClusterSection(object_store_gib=0.1, spill_dir=str(folder))) as has:
    kept = [ray.put(np.full(20 << 20, i, np.uint8)) for i in range(8)]
    values = [int(ray.get(one)[0]) for one in kept]
    spilled = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
print(json.dumps({"store": has.object_store_bytes, "values": values, "spilled": spilled}))
"""


@pytest.mark.long
def test_objects_beyond_the_memory_that_they_may_take_go_to_the_folder_for_them(tmp_path):
    done = subprocess.run([sys.executable, "-c", FILL, tmp_path], stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    assert 0 < found["store"] <= 0.1 * 2**30
    assert found["values"] == list(range(8))
    assert found["spilled"] >= 8 * (20 << 20) - found["store"]
