"""Data sets: what is loaded, that it is decoded once, and what bad names are told."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from fedcompress.errors import ConfigError
from simulations.data import FederatedData, load_data
from simulations.data import load as load_module
from simulations.data.cache import CachedArrays, cache_root, cached
from simulations.data.source import find_source

ARRAYS = ("train_x", "train_y", "test_x", "test_y")


def write_table(path: Path, columns: dict[str, list[object]], features: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(path)


def write_images(folder: Path, images: dict[str, np.ndarray], labels: dict[str, list[int]]) -> None:
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abc"))}
    for split, pixels in images.items():
        columns = {"image": [Image.fromarray(x) for x in pixels], "label": labels[split]}
        write_table(folder / f"{split}.parquet", columns, features)


def write_windows(folder: Path, splits: dict[str, list[tuple[str, str, str]]]) -> None:
    features = dict.fromkeys(("character_id", "x", "y"), datasets.Value("string"))
    for split, rows in splits.items():
        columns = {key: [row[i] for row in rows] for i, key in enumerate(features)}
        write_table(folder / f"{split}.parquet", columns, features)


@pytest.fixture
def grey(tmp_path: Path) -> Path:
    """A folder of data sets with one of six grey and three test images."""
    rng = np.random.default_rng(0)
    images = {
        "train": rng.integers(0, 256, (6, 5, 4), dtype=np.uint8),
        "test": rng.integers(0, 256, (3, 5, 4), dtype=np.uint8),
    }
    write_images(tmp_path / "grey", images, {"train": [0, 1, 2, 0, 1, 2], "test": [2, 1, 0]})
    np.savez(tmp_path / "truth.npz", **images)
    return tmp_path


def same(a: FederatedData, b: FederatedData) -> bool:
    return a.fingerprint == b.fingerprint and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ARRAYS
    )


def test_digits_are_split_once_and_for_all() -> None:
    data = load_data("digits")
    assert (data.task, data.num_classes, data.sample_shape) == ("image", 10, (1, 8, 8))
    assert len(data.train_y) + len(data.test_y) == 1797
    assert data.train_x.dtype == np.uint8
    assert data.train_y.dtype == np.int64
    share = np.bincount(data.test_y) / (np.bincount(data.test_y) + np.bincount(data.train_y))
    assert np.all(np.abs(share - 0.2) < 0.01)
    assert same(data, load_data("digits"))
    assert data.fingerprint == "06e085d317022cb8cccf60b8b668b4f9"


def test_arrays_are_read_only_and_mapped() -> None:
    data = load_data("digits")
    for name in ARRAYS:
        assert not getattr(data, name).flags.writeable
        assert isinstance(getattr(data, name), np.memmap)


def test_inputs_of_images_are_standardised(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (20, 4, 6, 3), dtype=np.uint8)
    pixels[..., 1] //= 2
    pixels[..., 2] = 7
    write_images(tmp_path, {"train": pixels, "test": pixels}, {"train": [0] * 20, "test": [1] * 20})
    data = load_data(str(tmp_path))
    x = data.inputs(data.train_x)
    assert x.dtype == torch.float32
    assert x.shape == (20, 3, 4, 6)
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-6)
    assert torch.allclose(x.std((0, 2, 3), correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-5)
    assert torch.equal(x, data.inputs(torch.from_numpy(data.train_x.copy())))
    plain = (pixels[0, 0, 0] / 255 - data.pixel_mean) / data.pixel_std
    np.testing.assert_allclose(x[0, :, 0, 0].numpy(), plain, atol=1e-6)


def test_folder_of_grey_images(grey: Path) -> None:
    data = load_data("grey", str(grey))
    truth = np.load(grey / "truth.npz")
    assert (data.name, data.task, data.num_classes) == ("grey", "image", 3)
    assert np.array_equal(data.train_x, truth["train"][:, None])
    assert np.array_equal(data.test_x, truth["test"][:, None])
    assert data.test_y.tolist() == [2, 1, 0]
    assert data.natural_ids is None
    assert same(data, load_data(str(grey / "grey")))


def test_folder_of_colour_images_without_a_test_split(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (20, 4, 6, 3), dtype=np.uint8)
    write_images(tmp_path, {"train": pixels}, {"train": [0, 1] * 10})
    data = load_data(str(tmp_path))
    assert data.sample_shape == (3, 4, 6)
    assert np.array_equal(data.test_x, pixels[9::10].transpose(0, 3, 1, 2))
    assert len(data.train_y) == 18


def test_folder_of_windows_of_characters(tmp_path: Path) -> None:
    splits = {
        "train": [("A_ROLE", "bca", "é"), ("B_ROLE", "cab", "a")],
        "test": [("A_ROLE", "aaz", "b")],
    }
    write_windows(tmp_path, splits)
    data = load_data(str(tmp_path))
    assert (data.task, data.vocabulary, data.num_classes) == ("characters", "abczé", 5)
    assert data.train_x.tolist() == [[1, 2, 0], [2, 0, 1]]
    assert data.train_x.dtype == np.uint8
    assert data.train_y.tolist() == [4, 0]
    assert data.test_x.tolist() == [[0, 0, 3]]
    assert data.natural_ids is not None
    assert data.natural_ids.tolist() == ["A_ROLE", "B_ROLE"]
    assert data.inputs(data.train_x).dtype == torch.int64


def test_decoded_once(grey: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_data("grey", str(grey))
    monkeypatch.setattr(load_module, "_decode", lambda source: pytest.fail("decoded again"))
    assert same(first, load_data("grey", str(grey)))


def test_changed_files_are_decoded_again(grey: Path) -> None:
    first = load_data("grey", str(grey))
    images = {"train": np.zeros((2, 5, 4), np.uint8), "test": np.ones((1, 5, 4), np.uint8)}
    write_images(grey / "grey", images, {"train": [0, 1], "test": [2]})
    assert not same(first, load_data("grey", str(grey)))


def test_a_warm_cache_imports_no_heavy_library(grey: Path) -> None:
    load_data("digits")
    load_data("grey", str(grey))
    code = (
        "import sys; from simulations.data import load_data; "
        f"load_data('digits'); load_data('grey', {str(grey)!r}); "
        "sys.exit(bool({'datasets', 'flwr_datasets', 'sklearn'} & set(sys.modules)))"
    )
    root = Path(load_module.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=root).returncode == 0


def _build(value: int) -> CachedArrays:
    return CachedArrays({"a": np.full(100_000, value)}, {"value": value})


def _open_in_process(key: str, value: int, barrier: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    found = cached("race", key, lambda: _build(value))
    assert np.all(found.arrays["a"] == found.facts["value"])


def test_processes_that_build_at_once_agree() -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    processes = [
        context.Process(target=_open_in_process, args=("one", value, barrier)) for value in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    left = [path.name for path in (cache_root() / "race").iterdir()]
    assert left == ["one"]


def test_a_truncated_cache_is_built_again() -> None:
    cached("cut", "key", lambda: _build(1))
    path = cache_root() / "cut" / "key" / "a.npy"
    path.write_bytes(path.read_bytes()[:1000])
    again = cached("cut", "key", lambda: _build(1))
    assert again.arrays["a"].sum() == 100_000
    assert isinstance(cached("cut", "key", lambda: _build(2)).arrays["a"], np.memmap)


def test_without_a_place_to_cache_arrays_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found = cached("memory", "key", lambda: _build(3))
    assert not found.arrays["a"].flags.writeable
    assert "cannot write" in caplog.text


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("digitz", "did you mean 'digits'"),
        ("gray", "did you mean 'grey'"),
        ("/no/such/folder", "there is no folder '/no/such/folder'"),
        ("./nowhere", "there is no folder './nowhere'"),
        ("empty", "holds no parquet file; put train.parquet and test.parquet there"),
        ("", "there is no data set ''"),
    ],
)
def test_a_name_that_leads_nowhere_is_told_so(grey: Path, name: str, told: str) -> None:
    (grey / "empty").mkdir()
    with pytest.raises(ConfigError) as caught:
        load_data(name, str(grey))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_data_dir_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data_dir: there is no folder .*gone"):
        load_data("grey", str(tmp_path / "gone"))


def test_hub_ids_are_recognised() -> None:
    source = find_source("ylecun/mnist@v1", None)
    assert (source.location, source.revision) == ("ylecun/mnist", "v1")
    assert source.key != find_source("ylecun/mnist", None).key


def test_an_unreadable_file_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_data(str(tmp_path))


def test_columns_of_neither_kind_are_told_so(tmp_path: Path) -> None:
    value = datasets.Value("int64")
    for split in ("train", "test"):
        write_table(tmp_path / f"{split}.parquet", {"a": [1], "b": [2]}, {"a": value, "b": value})
    with pytest.raises(ConfigError, match=r"a \(int64\), b \(int64\); needed are an Image"):
        load_data(str(tmp_path))


def test_windows_of_unequal_length_are_told_so(tmp_path: Path) -> None:
    rows = [("r", "abc", "a"), ("r", "ab", "a")]
    write_windows(tmp_path, {"train": rows, "test": rows[:1]})
    with pytest.raises(ConfigError, match="2 characters in row 1 of train x, others have 3"):
        load_data(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "shape", "train", "test"),
    [
        ("mnist", (1, 28, 28), 60_000, 10_000),
        ("fashion_mnist", (1, 28, 28), 60_000, 10_000),
        ("shakespeare", (80,), 265_678, 32_153),
    ],
)
def test_real_data(
    data_dir: Path, name: str, shape: tuple[int, ...], train: int, test: int
) -> None:
    data = load_data(name, str(data_dir))
    assert (data.sample_shape, len(data.train_y), len(data.test_y)) == (shape, train, test)
    if data.task == "characters":
        assert data.natural_ids is not None
        assert len(np.unique(data.natural_ids)) == 414
        assert data.vocabulary == "".join(sorted(data.vocabulary))
        assert int(data.train_x.max()) < data.num_classes == len(data.vocabulary)
        window = "".join(data.vocabulary[token] for token in data.train_x[0])
        assert window.startswith("In delivering my son from me")
