"""segray from Python: models, labels, scores and stages under the names that people type first.

`import segray` gives all of it, and loads none of it before it is used.
"""
