"""Tables of a folder or of the Hugging Face hub, read by the datasets library."""

import tempfile

import datasets
from datasets.exceptions import DatasetsError

from fedcompress.errors import ConfigError
from simulations.data.cache import cache_root
from simulations.data.source import Source

_TEST_SPLITS = ("test", "validation", "valid")
_TEST_EVERY = 10


def load_tables(source: Source) -> datasets.DatasetDict:
    """Load a source as tables ``"train"`` and ``"test"``.

    A source without a test or validation split has every tenth row held out.

    Raises
    ------
    ConfigError
        If the source cannot be read, or has no training split.
    """
    bars = datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        tables = _read(source)
    except (OSError, ValueError, DatasetsError) as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise ConfigError(
            f"data: {source.location!r} cannot be read ({reason}); give a folder of parquet "
            "files, or a hub id that this machine can reach"
        ) from error
    finally:
        if not bars:
            datasets.enable_progress_bars()
    if "train" not in tables:
        raise ConfigError(
            f"data: {source.location!r} has the splits {', '.join(tables)}; "
            "one must be called train"
        )
    train = tables["train"]
    for split in _TEST_SPLITS:
        if split in tables:
            return datasets.DatasetDict(train=train, test=tables[split])
    rows = range(len(train))
    kept = [row for row in rows if row % _TEST_EVERY != _TEST_EVERY - 1]
    return datasets.DatasetDict(
        train=train.select(kept), test=train.select(rows[_TEST_EVERY - 1 :: _TEST_EVERY])
    )


def _read(source: Source) -> datasets.DatasetDict:
    # What datasets writes beside the decoded arrays is of no use later.
    root = cache_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        place = str(root)
    except OSError:
        place = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(prefix=".tables-", dir=place) as folder:
        return datasets.load_dataset(
            source.location, revision=source.revision, cache_dir=folder, keep_in_memory=True
        )
