"""The test rows that all models of a cell answer, and those whose saliency maps are drawn."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from fedcompress import rng_for
from simulations.data import FederatedData
from simulations.explain.explained import Sample
from simulations.explain.saliency import map_shape

Array = np.ndarray[Any, np.dtype[Any]]
SALIENCY_ROWS = 64
SHOWN_SAMPLES = 5
MOST_PIXELS = 14
"""Along each side of an image that is kept to be shown."""


@final
@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a data set's test part.

    Attributes
    ----------
    data : FederatedData
        The data set.
    x : ndarray
        As in ``data.test_x``.
    inputs : ndarray
        As models take them: float32 images or int64 tokens.
    labels : ndarray
        Classes, int64, shape (rows,).
    seen : ndarray
        Which of these rows saliency is measured on; the first of them are shown.
    """

    data: FederatedData
    x: Array
    inputs: Array
    labels: Array
    seen: Array

    @property
    def cover(self) -> int:
        """What a covered place is filled with: the mean of images, the commonest character."""
        return 0 if self.data.task == "image" else int(np.bincount(self.inputs.ravel()).argmax())

    @property
    def class_rows(self) -> list[int]:
        """Rows of each class."""
        return [int(n) for n in np.bincount(self.labels, minlength=self.data.num_classes)]

    @property
    def class_names(self) -> list[str]:
        """How a person calls each class: a number, or the character itself."""
        named = {" ": "space", "\n": "line end", "\t": "tab"}
        characters = [named.get(each, each) for each in self.data.vocabulary]
        return characters or [str(index) for index in range(self.data.num_classes)]

    def samples(self, answers: Array) -> list[Sample]:
        """Describe the rows that are shown, with the dense model's answers to them."""
        return [
            Sample(
                label=int(self.labels[row]),
                answer=int(answers[row]),
                shape=map_shape(self.data.sample_shape),
                pixels=_coarse(self.x[row]) if self.data.task == "image" else None,
                text="".join(self.data.vocabulary[token] for token in self.x[row])
                if self.data.task == "characters"
                else "",
            )
            for row in self.seen[:SHOWN_SAMPLES]
        ]


def rows_to_answer(data: FederatedData, most: int, seed: int) -> Rows:
    """Take all test rows, or as many as wanted, drawn for the seed."""
    rng = rng_for(seed, client="server", purpose="explained rows")
    count = len(data.test_y)
    chosen = np.arange(count)
    if most < count:
        chosen = np.sort(rng.choice(count, size=most, replace=False))
    x = np.array(data.test_x[chosen])
    return Rows(
        data=data,
        x=x,
        inputs=data.inputs(x).contiguous().numpy(),
        labels=np.array(data.test_y[chosen]),
        seen=rng.choice(len(chosen), size=min(SALIENCY_ROWS, len(chosen)), replace=False),
    )


def _coarse(image: Array) -> list[list[float]]:
    """Give an image's brightness, 0 to 1, by blocks of pixels."""
    grey = image.mean(0) / 255
    step = -(-max(grey.shape) // MOST_PIXELS)
    rows = [grey[at : at + step] for at in range(0, grey.shape[0], step)]
    return [
        [round(float(row[:, at : at + step].mean()), 3) for at in range(0, grey.shape[1], step)]
        for row in rows
    ]
