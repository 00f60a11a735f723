"""One command a file, each read in this order: resolve the settings, prepare, train or fit, save.

The command line calls these functions, and so does `from clfew import pretrain, …`. `pretraining.py` is
one run of `pretrain.py` and of `compare.py`, `comparison.py` is what `compare.py` measures and
`compare_jobs.py` shares out among processes;
`finetuning.py`, `selecting.py` and `labelling.py` open what `finetune.py`, `select.py` and `label.py`
work on; `exporting.py` tries a smaller file for `export.py`; `demo_data/` holds the images of the demo.

It imports `console`, `data`, `distillation`, `errors`, `exporting`, `finetuning`, `group`,
`labelling`, `methods`, `models`, `quality`, `report`, `runs`, `selection`, `settings`, `signatures`,
`training` and `version`.
Open first: `pretraining.py`.
"""
