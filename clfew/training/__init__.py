"""The training loop, and what it needs.

Here are optimizers, the plan of steps and how it is made from minutes, batches, saving and
resuming, signals, numbers that are not finite, devices and precision, `torch.compile`, and
convolutions on a CPU.

It imports `console`, `data`, `errors` and `runs`.
Open first: `loop.py`.
"""
