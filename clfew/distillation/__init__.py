"""SimCLRv2's third step: a classifier teaches a student on the unlabelled images.

Here are the loss, the teacher and what it has learned from, the student, what can be expected of it,
and the run that compares the two.

It imports `console`, `data`, `errors`, `finetuning`, `group`, `methods`, `models`, `runs`, `settings`
and `training`.
Open first: `run.py`.
"""
