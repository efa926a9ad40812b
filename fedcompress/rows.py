"""How an array of any shape is seen as rows."""


def row_width(shape: tuple[int, ...]) -> int:
    """Give the entries of a row: of the first dimension by the rest, or a piece of a vector.

    A vector, and a matrix of fewer than four rows, is one row up to 4096 entries and rows of
    1024 beyond, of which the last may be shorter.
    """
    size = 1
    for length in shape:
        size *= length
    if len(shape) >= 2 and shape[0] >= 4:
        return size // shape[0]
    return size if size <= 4096 else 1024
