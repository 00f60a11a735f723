"""Which images to label next, and which to test on.

It imports `console`, `data`, `errors`, `finetuning`, `models`, `runs` and `training`.
Open first: `strategies.py`.
"""
