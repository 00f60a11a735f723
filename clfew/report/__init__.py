"""Pages and pictures.

Here are `report.html` and its figures, the model card, the page of a comparison, the plot of label
efficiency, and the samples of a pretraining method. The pages' templates are in `templates/`.

It imports `console`, `data`, `finetuning`, `methods`, `models`, `quality`, `runs`
and `training`.
Open first: `page.py`.
"""
