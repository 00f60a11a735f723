"""A page on this machine to label images in, with the classifier's help.

It imports `console`, `data`, `errors`, `finetuning`, `runs`, `selection` and `settings`.
Open first: `session.py`.
"""
