"""Networks, from images to features and classes.

Here are backbones by their names, the encoder, feature maps, the classifier, artifacts and their
metadata, initial weights from wherever they come, the defaults that `auto` chooses, and drift.

It imports `console`, `data`, `errors`, `group`, `runs` and `training`.
Open first: `encoder.py`, then `artifacts.py`.
"""
