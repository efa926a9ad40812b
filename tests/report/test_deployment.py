"""The report's section on deployed models: rows over seeds, figures, words, faults."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from simulations.report import load_run, write_report
from simulations.report.deployment import Deployment, in_words, load_deployment, text_rows
from simulations.report.deployment_figures import deployment_figures
from simulations.report.figure import FORMATS
from simulations.report.write import current_report

MakeRun = Callable[..., Path]
Explain = Callable[..., None]
FIGURES = {
    "deployed_accuracy_against_bytes",
    "deployed_latency",
    "deployed_classes",
    "deployed_calibration",
    "deployed_sparsity",
    "deployed_errors",
    "deployed_saliency",
}


def deployment_of(folder: Path) -> Deployment:
    found = load_deployment(load_run(folder))
    assert found is not None
    return found


@pytest.fixture
def page_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures' own files, which take most of a report's time."""
    monkeypatch.setattr("simulations.report.write.FORMATS", ())


@pytest.mark.usefixtures("page_only")
def test_a_run_without_explanations_has_no_section(make_run: MakeRun) -> None:
    folder = make_run(seeds=(1,), rounds=2)
    assert load_deployment(load_run(folder)) is None
    assert 'id="deployment"' not in write_report(folder).read_text("utf-8")


def test_rows_are_means_over_seeds(explained_run: Path) -> None:
    rows = {row[0]: row for row in text_rows(deployment_of(explained_run))}
    assert list(rows) == ["dense", "student", "int8.onnx", "pruned.safetensors"]
    assert rows["dense"][1:5] == ("90.30", "–", "40 kB", "1.00×")
    assert rows["student"][1:5] == ("88.30", "−2.00 ± 0.00", "4 kB", "10.0×")
    assert rows["student"][5:7] == ("25.4", "4.00×")
    assert rows["pruned.safetensors"][10:12] == ("10 k", "50.0")
    assert {row[-1] for row in rows.values()} == {"2"}


def test_one_seed_has_the_interval_of_its_rows(make_run: MakeRun, explain: Explain) -> None:
    folder = make_run(seeds=(1,), rounds=2)
    explain(folder)
    rows = {row[0]: row for row in text_rows(deployment_of(folder))}
    # 10 rows won and 30 lost of 1000: 1.96 · √(40 − 400 ÷ 1000) ÷ 1000.
    assert rows["student"][2] == "−2.00 ± 1.23"


@pytest.fixture(scope="module")
def report(explained_run: Path) -> Path:
    return write_report(explained_run)


def test_every_figure_is_drawn_and_in_its_files(report: Path) -> None:
    text = report.read_text("utf-8")
    drawn = deployment_figures(deployment_of(report.parent))
    assert {figure.name for figure in drawn} == FIGURES
    for figure in drawn:
        assert f'id="{figure.name}"' in text
        assert figure.title in text
        for file_format in FORMATS:
            assert (report.parent / f"figures/{figure.name}.{file_format}").stat().st_size > 1000


def test_the_page_says_what_was_found(report: Path) -> None:
    text = report.read_text("utf-8")
    for said in (
        "Deployment",
        "Smallest file, at most 1 point lost",
        "3.64×",
        "integer kernels: QGemm × 2",
        "50 % of weights set to zero · int8 · verified in a fresh process",
        "onnxruntime cannot run it: &lt;cut&gt;",
        "On 1,000 test rows",
    ):
        assert said in text


def test_words_name_class_and_layer(explained_run: Path) -> None:
    (pruned,) = [m for m in deployment_of(explained_run).models if m.name.startswith("pruned")]
    words = "; ".join(in_words(pruned))
    assert "class 1 suffers most (−4.00 points)" in words
    assert "layers.1.weight (NMSE 0.13)" in words


@pytest.mark.usefixtures("page_only")
def test_an_explanation_makes_the_report_stale(make_run: MakeRun, explain: Explain) -> None:
    folder = make_run(seeds=(1,), rounds=2)
    write_report(folder)
    assert current_report(folder) is not None
    explain(folder)
    assert current_report(folder) is None


@pytest.mark.usefixtures("page_only")
def test_an_explanation_of_another_version_is_named_and_left_out(
    make_run: MakeRun, explain: Explain
) -> None:
    folder = make_run(seeds=(1, 2), rounds=2)
    explain(folder)
    paths = sorted(folder.glob("cells/*/explain.json"))
    told = json.loads(paths[0].read_text("utf-8"))
    paths[0].write_text(json.dumps({**told, "version": 99}), "utf-8")
    found = deployment_of(folder)
    assert len(found.explanations) == 1
    assert "version 99" in dict(found.problems)[paths[0].parent.name]
    paths[0].write_text("{", "utf-8")
    assert (
        "run `fedcompress explain` again"
        in dict(deployment_of(folder).problems)[paths[0].parent.name]
    )
    write_report(folder)


@pytest.mark.usefixtures("page_only")
def test_strategies_are_told_apart(make_run: MakeRun, explain: Explain) -> None:
    folder = make_run(seeds=(1,), rounds=2)
    explain(folder)
    explain(folder, "FedAvg float32")
    names = [model.text for model in deployment_of(folder).models]
    assert names[0] == "FedAvg float32 · dense"
    assert len(set(names)) == len(names) == 8
    write_report(folder)


@pytest.mark.usefixtures("page_only")
def test_texts_are_drawn_too(make_run: MakeRun, explain: Explain) -> None:
    folder = make_run(seeds=(1,), rounds=2)
    explain(folder)
    (path,) = folder.glob("cells/*/explain.json")
    told = json.loads(path.read_text("utf-8"))
    text = {"label": 1, "answer": 0, "shape": [1, 4], "pixels": None, "text": "to be,\nor"}
    path.write_text(json.dumps({**told, "samples": [text]}), "utf-8")
    assert "Beside each text" in write_report(folder).read_text("utf-8")
