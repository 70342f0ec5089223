"""Pinned runs. Each is a .py with its facts (command, hardware, minutes, last scores) and a .yaml with its settings:

    python -m jobs.camvid_resnext_vs_mobilenet --data camvid/
    ray job submit --working-dir . -- python -m jobs.camvid_resnext_vs_mobilenet --data s3://…
    python -m jobs.camvid_resnext_vs_mobilenet --smoke      the same steps in a minute, on drawn streets

Results go to runs/NAME: a run a folder, its evaluation beside it, results.json with the table, curves.png, report.html.
"""
