"""The command `fedcompress export`: what it prints, and that every mistake is one line."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from fedcompress.errors import ConfigError, FedcompressError
from simulations.cli import main
from simulations.export import Deployable, export, export_model, load_deployable
from simulations.export.budget import meet_budget, read_bytes_text
from simulations.export.recipe import FORMATS, Recipe, read_recipe, rungs


def ended(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    """Run the command in this process; give its status, output and errors."""
    monkeypatch.setattr(sys, "argv", ["fedcompress", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


def test_a_file_and_its_recipe_stand_in_the_cells_folder(
    run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--to", "archive", "--model", "student", "--prune", "0.5", "--tune", 1]
    arguments += ["--quantize", "codebook"]
    status, said, errors = ended(capsys, monkeypatch, "export", run_folder, *arguments)
    assert (status, errors) == (0, "")
    (file,) = run_folder.glob("cells/*/exports/student-entries0.5-codebook-tuned1.fca")
    assert str(file) in said
    assert "smaller than float32" in said
    told = json.loads(file.with_name(f"{file.name}.json").read_text())
    assert told["recipe"]["prune"]["entries"] == 0.5
    assert told["recipe"]["unlabelled"] == "proxy data"
    assert told["model"] == "student"
    status, said, _ = ended(capsys, monkeypatch, "export", run_folder, *arguments, "--json")
    assert status == 0
    again = json.loads(said)
    assert again["bytes"] == told["bytes"]
    assert again["file"] == str(file)


MISTAKES: list[tuple[list[str], str]] = [
    (["--to", "onix"], "'onix' is not one of 'onnx'"),
    (["--to", "archive", "--prune", "95"], "did you mean 0.95?"),
    (["--to", "archive", "--prune", "rows:half"], "holds no number"),
    (["--to", "archive", "--prune", "row:0.5"], "did you mean 'rows'?"),
    (["--to", "archive", "--prune", "0.5", "--prune", "entries:0.6"], "entries twice"),
    (["--to", "archive", "--quantize", "int9"], "did you mean 'int8'?"),
    (["--to", "archive", "--tune", "-1"], "--tune must be 0 or more epochs, got -1"),
    (["--to", "archive", "--budget", "much"], "is no size; write 100kB"),
    (["--to", "archive", "--budget", "1"], "must be from 256 to 1e+15"),
    (["--to", "archive", "--budget", "9" * 400], "must be from 256 to 1e+15"),
    (["--to", "archive", "--importance", "fishr"], "did you mean 'fisher'?"),
    (["--to", "archive", "--importance", "fisher"], "chooses rows, and none are removed"),
    (["--to", "archive", "--prune", "2:4:6"], "write --prune 2:4"),
    (["--to", "archive", "--budget", "400"], "the least that this model takes"),
    (["--to", "archive", "--prune", "4:2"], "1 to M - 1 of at most 64; write --prune 2:4"),
    (["--to", "archive", "--prune", "2:4", "--prune", "0.5"], "entries twice"),
    (["--to", "archive", "--model", "teacher"], "has no model 'teacher'; known: global, student"),
    (["--to", "archive", "--cell", "dense-seed7"], "did you mean 'dense-seed0'?"),
    (["--to", "archive", "--prune", "rows:0.5", "--importance", "size"], "importance must be"),
]


@pytest.mark.parametrize(("arguments", "said"), MISTAKES, ids=str)
def test_a_mistake_ends_with_one_line(
    arguments: list[str],
    said: str,
    run_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = sorted(run_folder.rglob("*"))
    status, output, errors = ended(capsys, monkeypatch, "export", run_folder, *arguments)
    assert status == 2
    assert said in errors
    assert errors.startswith("fedcompress: ")
    assert errors.count("\n") == 1
    assert output == ""
    assert sorted(run_folder.rglob("*")) == before


def test_a_missing_library_is_named_with_the_extra(
    run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "simulations.export.installed.find_spec",
        lambda name: None if name == "onnxscript" else find(name),
    )
    status, _, errors = ended(capsys, monkeypatch, "export", run_folder, "--to", "onnx")
    assert status == 2
    assert "onnxscript is not installed; pip install 'fedcompress[export]'" in errors


def test_a_cell_has_to_be_finished_and_whole(
    run_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(run_folder, copied)
    cell = copied / "cells" / "dense-seed0"
    model = cell / "model.safetensors"
    whole = model.read_bytes()
    for content, said in ((whole[:-9], "is damaged"), (None, "is missing")):
        model.unlink()
        if content is not None:
            model.write_bytes(content)
        status, _, errors = ended(capsys, monkeypatch, "export", copied, "--to", "archive")
        assert status == 2
        assert said in errors
    model.write_bytes(whole)
    (cell / "result.json").unlink()
    status, _, errors = ended(capsys, monkeypatch, "export", copied, "--to", "archive")
    assert status == 2
    assert "dense-seed0 is not finished" in errors
    shutil.copytree(cell, copied / "cells" / "dense-seed1")
    status, _, errors = ended(capsys, monkeypatch, "export", copied, "--to", "archive")
    assert "holds 2 cells; choose one with --cell, such as --cell dense-seed0" in errors
    status, _, errors = ended(capsys, monkeypatch, "export", tmp_path, "--to", "archive")
    assert "holds no cell" in errors


@pytest.mark.parametrize(
    ("text", "size"),
    [("100kB", 100_000), ("1.5MB", 1_500_000), ("40000", 40_000), ("2 KiB", 2048), ("300b", 300)],
)
def test_sizes(text: str, size: int) -> None:
    assert read_bytes_text(text) == size


def test_recipes_are_read_as_they_are_written() -> None:
    recipe = read_recipe(["rows:0.5", "0.9"], "codebook", 3, "taylor")
    assert recipe == Recipe(0.5, 0.9, importance="taylor", quantize="codebook", tune=3)
    assert read_recipe(["2:4"], None, 0) == Recipe(entries=0.5, groups=(2, 4))
    assert read_recipe([], None, 0) == Recipe()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("quantize", [None, "int8", "int4", "codebook"])
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_no_rung_does_less_than_was_asked_for(
    kind: str, quantize: str | None, share: float
) -> None:
    recipe = Recipe(rows=share, entries=share, quantize=quantize, tune=2)
    found = rungs(recipe, kind)
    assert found[0] == recipe
    for rung in found:
        assert rung.rows >= recipe.rows
        assert rung.entries >= recipe.entries
        assert rung.tune == 2
        assert quantize in (None, rung.quantize)


@pytest.mark.parametrize("budget", [100, 90, 50, 11, 10])
def test_the_first_rung_within_the_budget_is_found(budget: int) -> None:
    sizes = [100, 90, 60, 40, 11, 10]
    found = meet_budget(range(6), lambda rung: sizes[rung], budget)
    assert sizes[found] <= budget
    assert found == 0 or sizes[found - 1] > budget


def test_a_file_is_never_written_over_a_record_or_a_folder(
    run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = run_folder / "cells" / "dense-seed0" / "model.safetensors"
    before = model.read_bytes()
    for out, said in ((model, "is a record of the run"), (run_folder, "is a folder; name a file")):
        arguments = ["--to", "archive", "--out", out]
        status, _, errors = ended(capsys, monkeypatch, "export", run_folder, *arguments)
        assert status == 2
        assert said in errors
    assert model.read_bytes() == before


def test_a_file_that_does_not_answer_leaves_what_stood_there(
    deployable: Deployable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.fca"
    file.write_bytes(b"an earlier one")
    write_archive = export.write_archive

    def write_other(stored: Any, head: Any, path: Path) -> int:
        return write_archive({name: x + 1 for name, x in stored.items()}, head, path)

    monkeypatch.setattr(export, "write_archive", write_other)
    monkeypatch.setattr(export, "load_archive", lambda _: deployable.model)
    with pytest.raises(FedcompressError, match=r"model\.fca does not answer as the model"):
        export_model(deployable, Recipe(), "archive", file)
    assert file.read_bytes() == b"an earlier one"
    assert list(tmp_path.iterdir()) == [file]


def test_the_least_size_that_is_named_can_be_had(student: Deployable, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as said:
        export_model(student, Recipe(), "archive", tmp_path / "small.fca", budget=300)
    least = int(re.search(r"in this format is ([\d,]+)", str(said.value))[1].replace(",", ""))
    exported = export_model(student, Recipe(), "archive", tmp_path / "small.fca", budget=least)
    assert 300 < exported.bytes <= least


def test_recipes_that_differ_have_names_that_differ() -> None:
    recipes = [
        Recipe(),
        Recipe(entries=0.5),
        Recipe(entries=0.5, groups=(2, 4)),
        Recipe(rows=0.5),
        Recipe(rows=0.5, importance="fisher"),
        Recipe(quantize="codebook"),
        Recipe(quantize="codebook", centroids=32),
        Recipe(spec="budget(bytes=600)"),
        Recipe(spec="budget(bytes=641)"),
        Recipe(tune=1),
    ]
    assert len({recipe.name for recipe in recipes}) == len(recipes)


def test_a_model_that_cannot_be_used_is_named_with_its_file(
    run_folder: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(run_folder, copied)
    file = copied / "cells" / "dense-seed0" / "model.safetensors"
    arrays = safetensors.numpy.load_file(file)
    first = next(iter(arrays))
    faults = {
        "is not finite, so its training has diverged": {first: np.full_like(arrays[first], np.nan)},
        "holds another model": {"further": np.zeros(3, np.float32)},
    }
    for said, changed in faults.items():
        safetensors.numpy.save_file({**arrays, **changed}, file)
        with pytest.raises(ConfigError, match=said) as raised:
            load_deployable(copied)
        assert str(raised.value).startswith(f"export: {file}")
