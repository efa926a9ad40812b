"""What every test shares: options, quiet neighbours, one thread, data, hypothesis profiles."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Set before ray, flwr, datasets or torch are imported, since each reads its settings then.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import hypothesis
import pytest
import torch

# Sixty examples of a law, not a hundred: the whole suite is to end within ten minutes.
hypothesis.settings.register_profile("dev", deadline=None, max_examples=40)
hypothesis.settings.register_profile(
    "ci", hypothesis.settings.get_profile("dev"), derandomize=True, print_blob=True
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--data-dir",
        default=os.environ.get("FEDCOMPRESS_TEST_DATA", ""),
        help="folder that holds mnist/, fashion_mnist/ and shakespeare/ as parquet files "
        "(default: $FEDCOMPRESS_TEST_DATA); tests on real data are skipped without it",
    )


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the clone."""
    return ROOT


@pytest.fixture(scope="session")
def data_dir(pytestconfig: pytest.Config) -> Path:
    """The folder of real data sets, or a skip that says how to name one."""
    given = str(pytestconfig.getoption("--data-dir"))
    if not given:
        pytest.skip("no real data: pass --data-dir or set FEDCOMPRESS_TEST_DATA")
    folder = Path(given).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a folder")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _cache_apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded data and partitions are cached in a folder of this test run's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what starts a Ray or a Flower of its own one after another, also under ``-n``."""
    for item in items:
        if item.get_closest_marker("ray") or item.get_closest_marker("flower"):
            item.add_marker(pytest.mark.xdist_group("engines"))
