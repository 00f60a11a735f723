"""The pretraining methods, by the name that --method takes."""

from clfew.methods.simclr import SimCLR

METHODS = {"simclr": SimCLR}
