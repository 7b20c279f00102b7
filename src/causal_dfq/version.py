"""The version of the package, as a run records it."""

__version__ = "0.1.0"
