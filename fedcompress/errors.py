"""The package's errors: each names the thing, the value and the mend."""


class FedcompressError(ValueError):
    """Base of every error that fedcompress raises on purpose."""


class ConfigError(FedcompressError):
    """A setting cannot work: an unknown name, a value out of range, a wrong order."""


class SpecError(ConfigError):
    """A compressor spec string cannot be parsed, or names a chain that cannot work."""


class PayloadError(FedcompressError):
    """Bytes that came over the wire do not decode to an update of the expected layout."""


class StaleMemoryError(PayloadError):
    """A payload builds on what its sender remembers, and this side remembers something else."""


class NotFiniteError(FedcompressError):
    """An update holds NaN or infinity where a lossy stage needs finite numbers."""


class OutOfRangeError(FedcompressError):
    """An update holds values that a stage does not take, such as probabilities above 1."""


class LayoutError(FedcompressError):
    """Arrays have other names, shapes or dtypes than the global model."""


class BudgetError(FedcompressError):
    """An update cannot be sent in the bytes that it was given."""


def diverged(name: str) -> NotFiniteError:
    """Make the error for an update whose training went astray."""
    return NotFiniteError(
        f"update of {name!r} holds NaN or infinity: training has diverged; "
        "lower the learning rate or clip gradients"
    )
