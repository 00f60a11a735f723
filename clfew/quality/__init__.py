"""What `clfew check` finds in a source: in its listing, in the headers of its files, in its pixels, and
in the features of an encoder.

It imports `console`, `data`, `errors` and `finetuning`.
Open first: `finding.py`.
"""
