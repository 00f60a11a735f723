"""From an encoder and a few labels to a classifier.

Here are where fine-tuning starts, the images and labels it has, the expected shares of the classes, the
modes, how one of them is chosen, calibration, thresholds, and the figures of a test.

It imports `console`, `data`, `errors`, `group`, `models`, `runs`, `training` and
`version`.
Open first: `fit.py`.
"""
