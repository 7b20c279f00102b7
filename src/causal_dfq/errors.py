"""What can go wrong for a user: each message says what is wrong, where, and what to do."""

from __future__ import annotations


class CausalDFQError(Exception):
    """The family of errors whose message is written for the user of the package."""


class ConfigError(CausalDFQError):
    """An option, a bit width or a configuration that cannot be used."""


class NetworkError(CausalDFQError):
    """A network that cannot be found, built or used."""


class WeightsError(NetworkError):
    """Weights that do not fit the network, are not finite or would need unpickling."""


class CaptureError(NetworkError):
    """A forward pass that torch.export cannot capture, or that fails on the input shape."""


class DataError(CausalDFQError):
    """Labelled images for evaluation that cannot be read."""


class OutputError(CausalDFQError):
    """An output folder that cannot be written, or that holds something else."""


class ExportError(CausalDFQError):
    """A network that has no form in the format asked for, or a file that does not compute what the network does."""
