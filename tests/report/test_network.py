"""Simulated links: keyed draws, the time of a transfer, the slowest client, time to accuracy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcompress.errors import ConfigError
from simulations.network import (
    PROFILES,
    LinkRates,
    LognormalNetwork,
    client_seconds,
    network_profile,
    round_seconds,
    time_to_accuracy,
)


def test_a_megabit_takes_a_second_at_one_megabit_a_second_plus_latency() -> None:
    link = LinkRates(1.0, 0.5, latency_seconds=0.25)
    assert link.download_seconds(125_000) == pytest.approx(1.25)
    assert link.upload_seconds(125_000) == pytest.approx(2.25)
    assert link.upload_seconds(0) == 0


@given(
    st.floats(0, 1e9), st.floats(0, 1e9), st.floats(0, 100), st.floats(0, 100), st.floats(0, 1e9)
)
def test_client_time_is_the_sum_and_grows_with_bytes(
    down: float, up: float, compute: float, encode: float, more: float
) -> None:
    link = LinkRates(20.0, 5.0, 0.01)

    def spent(sent: float) -> float:
        return client_seconds(
            link,
            downlink_bytes=down,
            compute_seconds=compute,
            encode_seconds=encode,
            uplink_bytes=sent,
        )

    parts = link.download_seconds(down) + compute + encode + link.upload_seconds(up)
    assert spent(up) == pytest.approx(parts)
    assert spent(up + more) >= spent(up)


def test_a_round_waits_for_its_slowest_client() -> None:
    assert round_seconds([1.0, 7.5, 3.0]) == 7.5
    assert round_seconds([]) == 0


@pytest.mark.parametrize("name", PROFILES)
def test_links_depend_on_seed_and_client_alone(name: str) -> None:
    profile = network_profile(name)
    assert profile.rates(3, 17) == profile.rates(3, 17)
    assert profile.rates(3, 17).uplink_mbit_per_second > 0
    assert profile.about.endswith(".")


def test_lognormal_links_differ_by_client_and_follow_the_fit() -> None:
    profile = PROFILES["wifi-5"]
    assert isinstance(profile, LognormalNetwork)
    links = [profile.rates(0, client) for client in range(2000)]
    logs = np.log([link.downlink_mbit_per_second for link in links])
    assert logs.mean() == pytest.approx(profile.log_mean, abs=4 * profile.log_deviation / 44)
    assert logs.std() == pytest.approx(profile.log_deviation, rel=0.1)
    assert links[0].uplink_mbit_per_second == pytest.approx(
        profile.uplink_share * links[0].downlink_mbit_per_second
    )
    assert profile.rates(1, 0) != links[0]


def test_fits_name_their_source_and_what_is_assumed() -> None:
    about = PROFILES["4g"].about
    assert "mobilebandwidth.github.io" in about
    assert "Apache-2.0" in about
    assert "assumption" in about


def test_a_constant_link_may_be_written_down_up() -> None:
    link = network_profile("50/12.5").rates(0, 0)
    assert (link.downlink_mbit_per_second, link.uplink_mbit_per_second) == (50, 12.5)


@pytest.mark.parametrize(
    ("name", "said"),
    [("wifi5", "did you mean wifi-5?"), ("carrier pigeon", "DOWN/UP"), ("50/0", "above 0 Mbit/s")],
)
def test_a_wrong_network_names_the_value_and_the_mend(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match="network") as caught:
        network_profile(name)
    assert name in str(caught.value)
    assert said in str(caught.value)


def test_time_to_accuracy_adds_rounds_until_the_target() -> None:
    accuracy = [0.1, math.nan, 0.6, 0.9]
    assert time_to_accuracy([0, 2, 3, 4], accuracy, 0.5) == 5
    assert time_to_accuracy([0, 2, 3, 4], accuracy, 0.95) is None
