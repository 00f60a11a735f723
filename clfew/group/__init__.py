"""Several processes, started by torchrun, that work on one command.

The first process, the leader, runs the command as it would alone: it alone reads runs, decides, writes
and speaks. The others, the helpers, wait until it calls a function that is shared out (`everywhere`):
to decode images, to apply a network to them, or to train. The leader sends them all that this takes but
the images, so they need no run folder, and nothing that they do depends on decisions of their own.

It imports `console`, `errors` and `version`.
Open first: `command.py`, then `group.py`.
"""
