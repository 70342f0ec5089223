"""Trains segmentation models on Ray, sweeps them, and labels frames and video with them.

    frames → train     segray.stages.train.train(config)        a model bundle, OUT/best
           → sweep     segray.stages.sweep.sweep(config)        a leaderboard, and the best bundle
           → evaluate  segray.stages.evaluate.evaluate(config)  metrics against ground truth
           → label     segray.stages.label.label(config)        masks and metrics in Parquet, read by core.labels.folder
           → select, export, report                      frames worth a look, files for other tools, one HTML page

config: segray.config.load("settings.yaml", {"train.epochs": 3}). docs/architecture.md shows what stands below.
"""

import os

# This makes PyTorch's allocator use huge pages: without them, a fifth of a CPU's time in a model goes into page faults.
# It is read once, at the first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
