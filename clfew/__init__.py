"""clfew: image classifiers from a folder of images and a few labels."""

__version__ = "0.1.0"
