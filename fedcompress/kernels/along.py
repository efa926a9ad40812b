"""Symbols predicted from rows before theirs, as taps of a kernel and pixels of an image are.

The prediction of a whole row is known once the rows before it are, so that within a row nothing
waits for anything: four states of the entropy coder take the columns in turn.
"""

import numpy as np

from fedcompress.kernels.jit import kernel
from fedcompress.kernels.rans import (
    _BITS,
    _MASK,
    _RECIPROCAL,
    _ROOM,
    _ROW,
    _SIXTEEN,
    _WHOLE,
    _WORD,
)

_ONE, _TWO, _THREE = np.uint64(1), np.uint64(2), np.uint64(3)
UNIT = 32  # weights are in 1/32
_LOWEST = 1 << 16


@kernel
def correlate(
    values: np.ndarray, lags: np.ndarray, phases: int, step: int, grams: np.ndarray
) -> None:
    """Add up products of rows with rows before them, for each phase.

    ``grams`` is float64, shape (phases, lags + 1, lags + 1), the last place being the row itself;
    one row in ``step`` of each phase is looked at.
    """
    rows, columns = values.shape
    n = lags.size
    near = np.empty((n + 1, columns), np.float32)
    for row in range(rows):
        phase = row % phases
        if row // phases % step:
            continue
        energy = np.float32(0)
        for i in range(n + 1):
            source = row - lags[i] if i < n else row
            for column in range(columns):
                value = np.float32(values[source, column]) if source >= 0 else np.float32(0)
                near[i, column] = value
        for column in range(columns):
            energy += near[n, column] * near[n, column]
        weight = 1.0 / (energy + 0.1 * columns)
        for i in range(n + 1):
            for j in range(i, n + 1):
                total = np.float32(0)
                for column in range(columns):
                    total += near[i, column] * near[j, column]
                grams[phase, i, j] += weight * total


@kernel
def likeness(values: np.ndarray, lag: int, step: int) -> float:
    """Correlate one row in ``step`` with the row ``lag`` before it."""
    both = own = 0.0
    for row in range(lag, values.shape[0], step):
        product = np.float32(0)
        energy = np.float32(1e-9)
        for column in range(values.shape[1]):
            product += np.float32(values[row, column]) * np.float32(values[row - lag, column])
            energy += np.float32(values[row, column]) * np.float32(values[row, column])
        both += product
        own += energy
    return both / own if own > 0 else 0.0


@kernel
def predict(
    values: np.ndarray, lags: np.ndarray, weights: np.ndarray, row: int, total: np.ndarray
) -> None:
    """Weigh the rows before ``row`` into ``total`` (int32), in units of 1/32."""
    phase = row % weights.shape[0]
    total[:] = 0
    for i in range(lags.size):
        weight = np.int32(weights[phase, i])
        source = row - lags[i]
        if source >= 0 and weight != 0:
            for column in range(total.size):
                total[column] += weight * np.int32(values[source, column])


@kernel
def residual(
    values: np.ndarray, lags: np.ndarray, weights: np.ndarray, out: np.ndarray, rest: np.ndarray
) -> None:
    """Split every row into what its prediction leaves and the prediction's rest."""
    total = np.empty(values.shape[1], np.int32)
    for row in range(values.shape[0]):
        predict(values, lags, weights, row, total)
        for column in range(total.size):
            near = (total[column] + 16) >> 5
            out[row, column] = np.int32(values[row, column]) - near
            rest[row, column] = np.int8(total[column] - 32 * near)


@kernel
def encode(
    contexts: np.ndarray,
    table_of: np.ndarray,
    symbols: np.ndarray,
    codes: np.ndarray,
    reciprocals: np.ndarray,
    states: np.ndarray,
    words: np.ndarray,
) -> int:
    """Code rows of symbols as `rans.encode` does, but four columns in step."""
    rows, columns = symbols.shape
    position = words.size
    whole = columns // 4 * 4
    x = np.empty(4, np.uint64)
    for lane in range(4):
        x[lane] = states[lane]
    x0, x1, x2, x3 = x[0], x[1], x[2], x[3]
    for row in range(rows - 1, -1, -1):
        if whole < columns:
            x[0], x[1], x[2], x[3] = x0, x1, x2, x3
            for column in range(columns - 1, whole - 1, -1):
                lane = column - whole
                i = (np.uint64(table_of[contexts[row, column]]) << _ROW) | np.uint64(
                    symbols[row, column]
                )
                f = np.uint64(codes[i]) >> _BITS
                y = x[lane]
                if y >= f << _ROOM:
                    position -= 1
                    words[position] = np.uint16(y & _WORD)
                    y >>= _SIXTEEN
                x[lane] = (
                    y + ((y * reciprocals[i]) >> _RECIPROCAL) * (_WHOLE - f) + (codes[i] & _MASK)
                )
            x0, x1, x2, x3 = x[0], x[1], x[2], x[3]
        r = np.uint64(row)
        for group in range(whole // 4 - 1, -1, -1):
            column = np.uint64(4 * group)
            i3 = (np.uint64(table_of[contexts[r, column + _THREE]]) << _ROW) | np.uint64(
                symbols[r, column + _THREE]
            )
            i2 = (np.uint64(table_of[contexts[r, column + _TWO]]) << _ROW) | np.uint64(
                symbols[r, column + _TWO]
            )
            i1 = (np.uint64(table_of[contexts[r, column + _ONE]]) << _ROW) | np.uint64(
                symbols[r, column + _ONE]
            )
            i0 = (np.uint64(table_of[contexts[r, column]]) << _ROW) | np.uint64(symbols[r, column])
            f3 = np.uint64(codes[i3]) >> _BITS
            f2 = np.uint64(codes[i2]) >> _BITS
            f1 = np.uint64(codes[i1]) >> _BITS
            f0 = np.uint64(codes[i0]) >> _BITS
            words[position - 1] = np.uint16(x3 & _WORD)
            if x3 >= f3 << _ROOM:
                position -= 1
                x3 >>= _SIXTEEN
            words[position - 1] = np.uint16(x2 & _WORD)
            if x2 >= f2 << _ROOM:
                position -= 1
                x2 >>= _SIXTEEN
            words[position - 1] = np.uint16(x1 & _WORD)
            if x1 >= f1 << _ROOM:
                position -= 1
                x1 >>= _SIXTEEN
            words[position - 1] = np.uint16(x0 & _WORD)
            if x0 >= f0 << _ROOM:
                position -= 1
                x0 >>= _SIXTEEN
            x3 += ((x3 * reciprocals[i3]) >> _RECIPROCAL) * (_WHOLE - f3) + (codes[i3] & _MASK)
            x2 += ((x2 * reciprocals[i2]) >> _RECIPROCAL) * (_WHOLE - f2) + (codes[i2] & _MASK)
            x1 += ((x1 * reciprocals[i1]) >> _RECIPROCAL) * (_WHOLE - f1) + (codes[i1] & _MASK)
            x0 += ((x0 * reciprocals[i0]) >> _RECIPROCAL) * (_WHOLE - f0) + (codes[i0] & _MASK)
    states[0], states[1] = np.uint32(x0), np.uint32(x1)
    states[2], states[3] = np.uint32(x2), np.uint32(x3)
    return position


@kernel
def decode(
    classes: np.ndarray,
    lags: np.ndarray,
    weights: np.ndarray,
    table_of: np.ndarray,
    slots: np.ndarray,
    half: int,
    beyond: np.ndarray,
    words: np.ndarray,
    states: np.ndarray,
    values: np.ndarray,
) -> int:
    """Read rows of predicted symbols; returns the position behind the last word, −1 on damage.

    Parameters
    ----------
    classes : ndarray
        uint8, shape (rows, columns).
    table_of : ndarray
        uint8, shape (classes, 17): the table of each class and size of a rest in 1/32.
    beyond : ndarray
        int64: the residuals beyond ``half``, in the order of the rows.
    values : ndarray
        int16, shape (rows, columns): filled.
    """
    rows, columns = values.shape
    mask = np.uint32(4095)
    end = words.size - 4
    whole = columns // 4 * 4
    total = np.empty(columns, np.int32)
    tables = np.empty(columns, np.uint8)
    read = np.empty(columns + 4, np.uint8)
    x = states.copy()
    position = 0
    taken = 0
    for row in range(rows):
        predict(values, lags, weights, row, total)
        for column in range(columns):
            rest = total[column] - 32 * ((total[column] + 16) >> 5)
            tables[column] = table_of[classes[row, column], abs(rest)]
        x0, x1, x2, x3 = x[0], x[1], x[2], x[3]
        for column in range(0, whole, 4):
            e0 = slots[tables[column], x0 & mask]
            e1 = slots[tables[column + 1], x1 & mask]
            e2 = slots[tables[column + 2], x2 & mask]
            e3 = slots[tables[column + 3], x3 & mask]
            x0 = np.uint32(((e0 >> np.uint32(12)) & mask) + np.uint32(1)) * (
                x0 >> np.uint32(12)
            ) + (e0 & mask)
            x1 = np.uint32(((e1 >> np.uint32(12)) & mask) + np.uint32(1)) * (
                x1 >> np.uint32(12)
            ) + (e1 & mask)
            x2 = np.uint32(((e2 >> np.uint32(12)) & mask) + np.uint32(1)) * (
                x2 >> np.uint32(12)
            ) + (e2 & mask)
            x3 = np.uint32(((e3 >> np.uint32(12)) & mask) + np.uint32(1)) * (
                x3 >> np.uint32(12)
            ) + (e3 & mask)
            read[column] = np.uint8(e0 >> np.uint32(24))
            read[column + 1] = np.uint8(e1 >> np.uint32(24))
            read[column + 2] = np.uint8(e2 >> np.uint32(24))
            read[column + 3] = np.uint8(e3 >> np.uint32(24))
            if x0 < _LOWEST:
                x0 = (x0 << np.uint32(16)) | np.uint32(words[position])
                position += 1
            if x1 < _LOWEST:
                x1 = (x1 << np.uint32(16)) | np.uint32(words[position])
                position += 1
            if x2 < _LOWEST:
                x2 = (x2 << np.uint32(16)) | np.uint32(words[position])
                position += 1
            if x3 < _LOWEST:
                x3 = (x3 << np.uint32(16)) | np.uint32(words[position])
                position += 1
            if position > end:
                return -1
        x[0], x[1], x[2], x[3] = x0, x1, x2, x3
        for column in range(whole, columns):
            lane = column - whole
            e0 = slots[tables[column], x[lane] & mask]
            y = np.uint32(((e0 >> np.uint32(12)) & mask) + np.uint32(1)) * (
                x[lane] >> np.uint32(12)
            ) + (e0 & mask)
            read[column] = np.uint8(e0 >> np.uint32(24))
            if y < _LOWEST:
                y = (y << np.uint32(16)) | np.uint32(words[position])
                position += 1
                if position > end:
                    return -1
            x[lane] = y
        far = False
        for column in range(columns):
            near = (total[column] + 16) >> 5
            value = np.int32(read[column]) - half
            far |= value > half
            value = -value if total[column] < 32 * near else value
            values[row, column] = near + value
        if far:
            for column in range(columns):
                if read[column] > 2 * half:
                    if taken >= beyond.size:
                        return -1
                    near = (total[column] + 16) >> 5
                    values[row, column] = near + beyond[taken]
                    taken += 1
    states[:] = x
    return position if taken == beyond.size else -1
