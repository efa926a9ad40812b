"""Network profiles: what a round would have taken over real links, from measured bytes.

Bytes are measured; the time they take on a link is *simulated* from a stated profile. Each
client's link is drawn once per seed and client, so every strategy meets the same slow clients.
"""

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

from fedcompress.errors import ConfigError
from fedcompress.randomness import rng_for

BITS_PER_MEGABIT = 1_000_000
BANDWIDTH_SOURCE = (
    "Lognormal fit to the 2021 downlink measurements published at mobilebandwidth.github.io "
    "(Apache-2.0)."
)
UPLINK_ASSUMPTION = "The uplink as a share of the downlink, and the latency, are assumptions."


@final
@dataclass(frozen=True)
class LinkRates:
    """One client's link. `latency_seconds` is paid once for each transfer."""

    downlink_mbit_per_second: float
    uplink_mbit_per_second: float
    latency_seconds: float

    def download_seconds(self, downlink_bytes: float) -> float:
        """Seconds until `downlink_bytes` have arrived at the client; nothing sent takes no time."""
        return self._seconds(downlink_bytes, self.downlink_mbit_per_second)

    def upload_seconds(self, uplink_bytes: float) -> float:
        """Seconds until `uplink_bytes` have arrived at the server; nothing sent takes no time."""
        return self._seconds(uplink_bytes, self.uplink_mbit_per_second)

    def _seconds(self, sent_bytes: float, mbit_per_second: float) -> float:
        if sent_bytes <= 0:
            return 0.0
        return self.latency_seconds + sent_bytes * 8 / (mbit_per_second * BITS_PER_MEGABIT)


class NetworkProfile(ABC):
    """A population of client links."""

    name: str

    @abstractmethod
    def rates(self, seed: int, client: int) -> LinkRates:
        """Return the link of `client`: the same for the same seed, whatever the strategy."""

    @property
    @abstractmethod
    def about(self) -> str:
        """One sentence for a reader: the numbers, their source and what is assumed."""


@final
@dataclass(frozen=True)
class ConstantNetwork(NetworkProfile):
    """Every client has the same link."""

    name: str
    downlink_mbit_per_second: float
    uplink_mbit_per_second: float
    latency_seconds: float = 0.05

    def __post_init__(self) -> None:
        """Refuse links that carry nothing.

        Raises
        ------
        ConfigError
            If a rate is not positive or the latency is negative.
        """
        slowest = min(self.downlink_mbit_per_second, self.uplink_mbit_per_second)
        if not slowest > 0:
            raise ConfigError(
                f"network {self.name}: rates must be above 0 Mbit/s, got {slowest:g}; "
                "write DOWN/UP, for example 50/10"
            )
        if self.latency_seconds < 0:
            raise ConfigError(
                f"network {self.name}: latency must be 0 s or more, got {self.latency_seconds:g}"
            )

    def rates(self, seed: int, client: int) -> LinkRates:
        """Return the one link that all clients share."""
        return LinkRates(
            self.downlink_mbit_per_second, self.uplink_mbit_per_second, self.latency_seconds
        )

    @property
    def about(self) -> str:
        """The numbers, in words."""
        return (
            f"Every client: {self.downlink_mbit_per_second:g} Mbit/s down, "
            f"{self.uplink_mbit_per_second:g} Mbit/s up, "
            f"{self.latency_seconds * 1000:g} ms latency a transfer (assumed)."
        )


@final
@dataclass(frozen=True)
class LognormalNetwork(NetworkProfile):
    """Client downlinks are lognormal: ln(Mbit/s) has mean `log_mean`, deviation `log_deviation`."""

    name: str
    log_mean: float
    log_deviation: float
    uplink_share: float = 0.25
    latency_seconds: float = 0.05

    def rates(self, seed: int, client: int) -> LinkRates:
        """Draw the link of `client`, keyed by seed, client and profile alone."""
        rng = rng_for(seed, client=client, purpose=f"network:{self.name}")
        downlink = float(rng.lognormal(self.log_mean, self.log_deviation))
        return LinkRates(downlink, downlink * self.uplink_share, self.latency_seconds)

    @property
    def about(self) -> str:
        """The fit, its source and what is assumed."""
        return (
            f"Downlink: ln(Mbit/s) has mean {self.log_mean:g}, deviation {self.log_deviation:g}. "
            f"{BANDWIDTH_SOURCE} Uplink = {self.uplink_share:g} × downlink, "
            f"{self.latency_seconds * 1000:g} ms latency a transfer. {UPLINK_ASSUMPTION}"
        )


PROFILES: dict[str, NetworkProfile] = {
    profile.name: profile
    for profile in (
        ConstantNetwork("slow", downlink_mbit_per_second=4, uplink_mbit_per_second=1),
        ConstantNetwork("broadband", downlink_mbit_per_second=100, uplink_mbit_per_second=20),
        ConstantNetwork(
            "datacenter",
            downlink_mbit_per_second=10_000,
            uplink_mbit_per_second=10_000,
            latency_seconds=0.0005,
        ),
        LognormalNetwork("4g", log_mean=3.02, log_deviation=1.57),
        LognormalNetwork("5g", log_mean=5.28, log_deviation=1.35),
        LognormalNetwork("wifi-4", log_mean=3.42, log_deviation=1.36),
        LognormalNetwork("wifi-5", log_mean=5.05, log_deviation=1.08),
        LognormalNetwork("wifi-6", log_mean=5.49, log_deviation=1.18),
    )
}


def network_profile(name: str) -> NetworkProfile:
    """Return a profile by its name, or a constant one written `DOWN/UP` in Mbit/s (`"50/10"`).

    Raises
    ------
    ConfigError
        If the name is unknown or a rate is not positive.
    """
    if name in PROFILES:
        return PROFILES[name]
    constant = re.fullmatch(r"(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)", name)
    if constant:
        return ConstantNetwork(name, float(constant[1]), float(constant[2]))
    near = difflib.get_close_matches(name.lower(), PROFILES, n=1)
    mend = f"did you mean {near[0]}?" if near else f"known: {', '.join(PROFILES)}, or DOWN/UP"
    raise ConfigError(f"network: unknown profile {name!r}; {mend}")


def client_seconds(
    rates: LinkRates,
    *,
    downlink_bytes: float,
    compute_seconds: float,
    encode_seconds: float,
    uplink_bytes: float,
) -> float:
    """Return download + compute + encode + upload of one client in one round, in seconds."""
    return (
        rates.download_seconds(downlink_bytes)
        + compute_seconds
        + encode_seconds
        + rates.upload_seconds(uplink_bytes)
    )


def round_seconds(kept_client_seconds: Iterable[float]) -> float:
    """Return the time of a round: that of its slowest kept client; 0 when none was kept."""
    return max(kept_client_seconds, default=0.0)


def time_to_accuracy(
    seconds_per_round: Sequence[float], accuracy_per_round: Sequence[float], target: float
) -> float | None:
    """Return the simulated seconds after which `target` accuracy was first measured.

    Parameters
    ----------
    seconds_per_round, accuracy_per_round
        One entry per round, in order; accuracy is NaN in rounds without evaluation.
    target
        Accuracy as a share of 1.

    Returns
    -------
    float or None
        None when the target was never reached.
    """
    elapsed = 0.0
    for seconds, accuracy in zip(seconds_per_round, accuracy_per_round, strict=True):
        elapsed += seconds
        if accuracy >= target:
            return elapsed
    return None
