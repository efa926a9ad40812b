"""How many components of a low-rank prediction pay: bits saved against bits of the factors.

Reverse water-filling (Cover & Thomas, 2006, section 10.3) by a model: the variance of an entry
is that of its row times that of its column, and so for the entries of the factors.
"""

import numpy as np

from fedcompress.kernels.jit import inlined, kernel

# Bits of an entry of variance v (in squared steps of the trellis), its squared error counted as
# bits at the slope of the trade-off: one sent as zero costs its energy, any other its logarithm.
_PER_ENERGY = 1 / 0.33
_AT_ONE = 1.75
_TURN = 0.29  # variance where the two meet
_BINS = 4  # to an octave of energy
_LANES = 16  # sums side by side
_HEADER = 40.0  # bits of headers, and below of a component's
_EACH = 10.0
_PATIENCE = 4  # ranks in a row that pay less than the best, after which no more are tried


@inlined
def _entry_bits(variance: float) -> float:
    return variance * _PER_ENERGY if variance < _TURN else 0.5 * np.log2(variance) + _AT_ONE


@kernel
def _energies(matrix: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> None:
    """Sum the squares of each row and of each column."""
    lanes = np.empty(_LANES, np.float32)
    sums = np.zeros(matrix.shape[1], np.float32)
    whole = matrix.shape[1] // _LANES * _LANES
    for i in range(matrix.shape[0]):
        for k in range(_LANES):
            lanes[k] = np.float32(0)
        for j in range(0, whole, _LANES):
            for k in range(_LANES):
                lanes[k] += matrix[i, j + k] * matrix[i, j + k]
        for j in range(whole, matrix.shape[1]):
            lanes[0] += matrix[i, j] * matrix[i, j]
        total = 0.0
        for k in range(_LANES):
            total += lanes[k]
        rows[i] = total
        for j in range(matrix.shape[1]):
            sums[j] += matrix[i, j] * matrix[i, j]
    for j in range(matrix.shape[1]):
        columns[j] = sums[j]


@kernel
def _histogram(energies: np.ndarray) -> tuple[int, np.ndarray]:
    """Count energies by quarter octaves; the first bin in use, and the counts from there on."""
    # The exponent and two bits of the mantissa: as good as a logarithm here, and far faster.
    total = 0.0
    for i in range(energies.size):
        total += energies[i]
    silent = 1e-6 * total / energies.size + 1e-30  # as good as zero, and not so many bins away
    raised = np.empty(energies.size)
    for i in range(energies.size):
        raised[i] = energies[i] + silent
    bits = raised.view(np.int64)
    low, high = bits[0] >> 50, bits[0] >> 50
    for i in range(bits.size):
        low, high = min(low, bits[i] >> 50), max(high, bits[i] >> 50)
    counts = np.zeros(high - low + 1)
    for i in range(bits.size):
        counts[(bits[i] >> 50) - low] += 1
    return low - _BINS * 1023, counts


@kernel
def _entries(rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the histogram of the variances of all entries: counts and variances."""
    low_a, a = _histogram(rows)
    low_b, b = _histogram(columns)
    counts = np.zeros(a.size + b.size - 1)
    for i in range(a.size):
        for j in range(b.size):
            counts[i + j] += a[i] * b[j]
    total = 1e-30
    for i in range(rows.size):
        total += rows[i]
    step = 2.0 ** (1 / _BINS)
    variances = np.empty(counts.size)
    variance = 2.0 ** ((low_a + low_b + 1) / _BINS) / total
    for i in range(counts.size):
        variances[i] = variance
        variance *= step
    return counts, variances


@kernel
def _cost(rows: np.ndarray, columns: np.ndarray) -> float:
    counts, variances = _entries(rows, columns)
    bits = 0.0
    for i in range(counts.size):
        bits += counts[i] * _entry_bits(variances[i])
    return bits


@kernel
def cost(matrix: np.ndarray) -> float:
    """Bits of a matrix (float32, in steps of the trellis), its squared error counted as bits."""
    rows, columns = np.empty(matrix.shape[0]), np.empty(matrix.shape[1])
    _energies(matrix, rows, columns)
    return _cost(rows, columns)


@kernel
def _factor_bits(energies: np.ndarray, shares: np.ndarray, scale: float) -> float:
    # energies[i] sums over k what entry (i, k) holds; shares[k] is component k's part of all.
    low, counts = _histogram(energies)
    bits = 0.0
    for i in range(counts.size):
        if counts[i] > 0:
            energy = 2.0 ** ((low + i + 0.5) / _BINS) * scale
            product = 1.0
            for k in range(shares.size):
                product *= 1 + 17 * energy * shares[k]
                if product > 1e200:
                    bits += counts[i] * 0.5 * np.log2(product)
                    product = 1.0
            bits += counts[i] * 0.5 * np.log2(product)
    return bits


@kernel
def choose(matrix: np.ndarray, u: np.ndarray, v: np.ndarray) -> tuple[int, float]:
    """Choose the rank, and the mean squared error that rounding its factors may add.

    The matrix (R, C) is in units of the trellis' step, and the columns of ``u`` (R, K) and ``v``
    (C, K) are its components, largest first.
    """
    most = u.shape[1]
    many, wide = matrix.shape
    rows, columns = np.empty(many), np.empty(wide)
    _energies(matrix, rows, columns)
    rest_rows, rest_columns = np.empty(many), np.empty(wide)
    of_u, of_v = np.zeros(many), np.zeros(wide)
    for i in range(many):
        rest_rows[i] = rows[i]
    for j in range(wide):
        rest_columns[j] = columns[j]
    energies = np.zeros(most)
    best_rank, best_noise, best = 0, 0.0, _cost(rows, columns) - _HEADER
    due, worse = 1, 0
    for rank in range(1, most + 1):
        k = rank - 1
        energy_u, energy_v = 0.0, 0.0
        for i in range(many):
            energy_u += np.float64(u[i, k]) * np.float64(u[i, k])
        for j in range(wide):
            energy_v += np.float64(v[j, k]) * np.float64(v[j, k])
        for i in range(many):
            part = np.float64(u[i, k]) * np.float64(u[i, k]) * energy_v
            of_u[i] += part / wide
            rest_rows[i] = max(rest_rows[i] - part, rows[i] * 1e-6)
        for j in range(wide):
            part = np.float64(v[j, k]) * np.float64(v[j, k]) * energy_u
            of_v[j] += part / many
            rest_columns[j] = max(rest_columns[j] - part, columns[j] * 1e-6)
        energies[k] = energy_u * energy_v
        if rank < due and rank < most:
            continue
        due = rank + max(1, rank // 3)
        counts, variances = _entries(rest_rows, rest_columns)
        slope = 0.0
        for i in range(counts.size):
            slope += counts[i] * min(_PER_ENERGY, 0.5 / np.log(2.0) / variances[i])
        slope /= many * wide
        # At the best noise the bits that it adds to the rest grow as those of the factors fall.
        noise = rank * (many + wide) / (many * wide) / (2 * np.log(2.0) * slope)
        bits = rank * _EACH
        for i in range(counts.size):
            bits += counts[i] * _entry_bits(variances[i] + noise)
        scale = rank * (many + wide) / (12 * noise)
        total = 0.0
        for i in range(rank):
            total += energies[i]
        shares = np.empty(rank)
        for i in range(rank):
            shares[i] = energies[i] / total
        bits += _factor_bits(of_u, shares, scale / many)
        bits += _factor_bits(of_v, shares, scale / wide)
        if bits < best:
            best, best_rank, best_noise = bits, rank, noise
            worse = 0
        else:
            worse += 1
            if worse == _PATIENCE:
                break
    return best_rank, best_noise
