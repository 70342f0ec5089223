"""Pinned runs. Each is a .py with its facts (command, hardware, minutes, last scores) and a .yaml with its settings:

    python -m jobs.camvid_resnext_vs_mobilenet --data camvid/
    segray submit --address http://HEAD:8265 jobs.camvid_resnext_vs_mobilenet --data /shared/camvid --out /shared/out
    python -m jobs.camvid_resnext_vs_mobilenet --smoke      the same steps in a minute, on drawn streets

Results go to runs/NAME: a run a folder, its evaluation beside it, results.json with the table, curves.png, report.html.
"""
