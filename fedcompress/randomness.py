"""Counter-based randomness, keyed by what it is for."""

import hashlib

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import DTypeLike


def rng_for(
    seed: int, *, round: int = 0, client: int | str = 0, purpose: str = ""
) -> np.random.Generator:
    """Make the generator that belongs to one (seed, round, client, purpose).

    The same key gives the same numbers in every process, on every machine and engine,
    whatever else has been drawn before. Different keys give independent streams.

    Parameters
    ----------
    seed : int
        Seed of the run.
    round : int
        Server round, 0 for what happens before training.
    client : int or str
        Client (its partition id), or any other name for who draws.
    purpose : str
        What the numbers are for, such as ``"quantize"`` or ``"shuffle"``.

    Returns
    -------
    numpy.random.Generator
        A Philox generator (Salmon et al., 2011) under the BLAKE2b hash of the key.

    Examples
    --------
    >>> a = rng_for(1, round=3, client=7, purpose="quantize")
    >>> b = rng_for(1, round=3, client=7, purpose="quantize")
    >>> bool(a.random() == b.random())
    True
    """
    key = "\x1f".join((str(int(seed)), str(int(round)), str(client), purpose))
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(_Key(np.frombuffer(digest, "<u8"))))  # type: ignore[arg-type]


class _Key(ISeedSequence):
    """Gives Philox its key; ``Philox(key=...)`` would first draw one from the system."""

    def __init__(self, key: np.ndarray) -> None:
        self._key = key

    def generate_state(self, n_words: int, dtype: DTypeLike = np.uint64) -> np.ndarray:
        """Give the key, which is all that Philox asks for."""
        if n_words != self._key.size or np.dtype(dtype) != np.uint64:
            raise ValueError(f"a key of two 64-bit words is no state of {n_words} words")
        return self._key
