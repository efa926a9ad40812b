"""TernGrad as Wen et al. (2017) wrote it: ±max or 0, without bias."""

import numpy as np
import torch

from fedcompress import parse, rng_for
from strategies.methods import method


def test_terngrad_sends_three_levels_whose_mean_is_the_update() -> None:
    x = torch.from_numpy(rng_for(1).standard_normal(40).astype(np.float32))
    compressor = parse(str(method("terngrad").uplink))
    assert compressor.unbiased
    draws = torch.stack(
        [compressor.encode_and_decode({"x": x}, {}, rng_for(i))[2]["x"] for i in range(2000)]
    )
    largest = x.abs().max()
    assert set(draws.unique().tolist()) == {-float(largest), 0.0, float(largest)}
    error = (draws.mean(0) - x).abs()
    assert float((error - 6 * draws.std(0) / 2000**0.5).max()) < 1e-6
