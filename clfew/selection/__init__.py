"""Which images to label next, and which to test on.

It imports `console`, `data`, `errors`, `finetuning`, `models` and `settings`.
Open first: `strategies.py`.
"""
