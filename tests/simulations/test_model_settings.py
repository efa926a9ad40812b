"""Models as one text: read, written, and refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcompress.errors import ConfigError
from simulations.model_settings import ModelSettings, read_models, write_models
from simulations.models import MODELS

MODEL = st.builds(
    ModelSettings,
    name=st.sampled_from(sorted(MODELS)),
    hidden=st.lists(st.integers(1, 500), max_size=3),
    width=st.floats(0.01, 8),
    norm_statistics=st.sampled_from(["running", "static"]),
)


@given(st.lists(MODEL, min_size=1, max_size=4))
def test_what_is_written_is_read(models: list[ModelSettings]) -> None:
    assert list(read_models(write_models(models))) == models


def test_settings_that_are_not_given_are_the_usual_ones() -> None:
    assert read_models("mlp(hidden=[200]); lenet") == (
        ModelSettings(name="mlp", hidden=(200,)),
        ModelSettings(name="lenet"),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no model"),
        ("mlp(", "cannot be read"),
        ("lennet()", "did you mean 'lenet'?"),
        ("mlp(200)", "settings without a name"),
        ("mlp(hiden=[3])", "did you mean 'hidden'?"),
        ("mlp(hidden=[0])", "must be greater than or equal to 1"),
        ("mlp(hidden=open('x'))", "is no number, list or text"),
        ("mlp(**{'width': 1})", "cannot be read"),
        ("mlp(width=1, width=2)", "cannot be read"),
        ("mlp().x", "is no model"),
        ("import os", "is no model"),
        ("mlp(\0)", "cannot be read"),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_models(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_models_or_a_config_error(text: str) -> None:
    try:
        models = read_models(text)
    except ConfigError:
        return
    assert read_models(write_models(models)) == models
