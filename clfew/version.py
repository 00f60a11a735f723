"""The version, in a place that everything may read."""

__version__ = "0.1.0"
