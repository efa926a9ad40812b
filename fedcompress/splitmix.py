"""Random words by their number, on any device: SplitMix64 (Steele, Lea & Flood, 2014)."""

from torch import Tensor


def random_words(seed: int, numbers: Tensor) -> Tensor:
    """Give words of a stream by their numbers, as `fedcompress.kernels.splitmix` does.

    Parameters
    ----------
    seed : int
        Where the stream begins, 0 to 2**64 − 1.
    numbers : Tensor
        int64, any shape and device.

    Returns
    -------
    Tensor
        int64 in the shape of ``numbers``: the 64 bits of each word.
    """
    z = numbers * _signed(0x9E3779B97F4A7C15) + _signed(seed)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shifted(z, 31)


def _signed(word: int) -> int:
    """Read an unsigned 64-bit word as torch holds it."""
    return word - (1 << 64) if word >> 63 else word


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros, where torch fills with the sign."""
    return z >> bits & ((1 << (64 - bits)) - 1)
