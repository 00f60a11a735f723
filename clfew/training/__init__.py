"""The training loop, and what it needs.

Here are optimizers, the plan of steps and how it is made from minutes, batches, saving and
resuming, signals, numbers that are not finite, devices and precision, `torch.compile`, and
convolutions on a CPU. `steps.py` and `whole_batch.py` are what several processes do alike.

It imports `console`, `data`, `errors`, `group` and `runs`.
Open first: `loop.py`.
"""
