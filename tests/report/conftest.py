"""A synthetic run folder, written as the runner writes it, with bytes known in advance."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

DENSE_BYTES = 40_000
CLIENTS_A_ROUND = 4
ENVELOPE_BYTES = 700


@dataclass(frozen=True)
class FakeStrategy:
    """What one strategy sends: payload bytes of a client in a round, and where it converges."""

    label: str
    uplink_bytes: int = DENSE_BYTES
    update_bytes: int = DENSE_BYTES
    catchup_bytes: int = 0
    final: float = 0.9
    uplink: str = ""
    downlink: str = ""
    student: bool = False
    streams: dict[str, float] = field(default_factory=lambda: {"floats": 1.0})


STRATEGIES = (
    FakeStrategy("FedAvg float32"),
    FakeStrategy(
        "Quantized, 4 bit",
        uplink_bytes=4_000,
        final=0.895,
        uplink="quantize(4) | entropy()",
        streams={"symbols": 0.9, "scale": 0.06, "overhead": 0.04},
    ),
    FakeStrategy(
        "Top-k 1 % + error feedback",
        uplink_bytes=500,
        final=0.885,
        uplink="error_feedback(top_k(0.01) | quantize(4) | entropy())",
        streams={"symbols": 0.35, "index": 0.5, "scale": 0.05, "overhead": 0.1},
    ),
    FakeStrategy(
        "STC both ways",
        uplink_bytes=400,
        update_bytes=800,
        catchup_bytes=10_000,
        final=0.88,
        uplink="error_feedback(top_k(0.01) | ternary() | entropy())",
        downlink="error_feedback(top_k(0.02) | ternary() | entropy())",
        streams={"symbols": 0.2, "index": 0.6, "scale": 0.05, "overhead": 0.15},
    ),
    FakeStrategy(
        "Quantized + distilled",
        uplink_bytes=4_000,
        final=0.903,
        student=True,
        uplink="quantize(4) | entropy()",
        streams={"symbols": 0.9, "scale": 0.06, "overhead": 0.04},
    ),
)

MakeRun = Callable[..., Path]


def accuracy_at(strategy: FakeStrategy, seed: int, number: int) -> float:
    """Follow a saturating curve, a little apart for each seed, so that intervals are known."""
    speed = 0.25 if strategy.uplink_bytes > 1000 else 0.18
    reached = strategy.final + 0.004 * (seed - 1)
    return reached - (reached - 0.1) * 2.718281828 ** (-speed * number)


def write_cell(
    folder: Path, strategy: FakeStrategy, seed: int, rounds: int, *, finished: bool = True
) -> Path:
    """Write one cell's records."""
    slug = "".join(c if c.isalnum() else "-" for c in strategy.label).strip("-").lower() or "cell"
    cell = folder / "cells" / f"{slug}-seed{seed}"
    cell.mkdir(parents=True)
    settings = {"seed": seed, "rounds": rounds, "strategy": {"label": strategy.label}}
    (cell / "cell.json").write_text(json.dumps(settings), "utf-8")
    round_rows: list[dict[str, object]] = []
    client_rows: list[dict[str, object]] = []
    for number in range(rounds + 1):
        trained = CLIENTS_A_ROUND
        down = strategy.update_bytes + strategy.catchup_bytes
        streams = {
            name: round(share * strategy.uplink_bytes * trained)
            for name, share in strategy.streams.items()
        }
        if number == 0:
            start = {"round": 0, "accuracy": accuracy_at(strategy, seed, 0), "loss": 2.3}
            round_rows.append(start)
            continue
        round_rows.append(
            {
                "round": number,
                "accuracy": accuracy_at(strategy, seed, number),
                "loss": 1.0,
                "train_loss": 1.0,
                "clients_sampled": trained,
                "clients_aggregated": trained,
                "clients_rejected": 0,
                "clients_failed": 0,
                "uplink_payload_bytes": trained * strategy.uplink_bytes,
                "uplink_message_bytes": trained * (strategy.uplink_bytes + ENVELOPE_BYTES),
                "downlink_payload_bytes": trained * down,
                "downlink_message_bytes": trained * (down + ENVELOPE_BYTES),
                "downlink_catchup_bytes": trained * strategy.catchup_bytes,
                "dense_bytes": DENSE_BYTES,
                "uplink_bytes_by_stream": streams,
                "round_seconds": 0.5,
                "train_seconds": 0.4,
                "encode_seconds": 0.01,
                "decode_seconds": 0.01,
                "aggregate_seconds": 0.01,
                "evaluate_seconds": 0.02,
                "split_seconds": {
                    "download": 0.03,
                    "train": 0.3,
                    "encode": 0.005,
                    "transfer": 0.05,
                    "wait": 0.045,
                    "decode": 0.01,
                    "aggregate": 0.01,
                    "evaluate": 0.02,
                    "other": 0.03,
                },
            }
        )
        client_rows += [
            {
                "round": number,
                "client": (number * 3 + place) % 20,
                "node_id": (number * 3 + place) % 20 + 1,
                "status": "ok",
                "reason": None,
                "num_examples": 50,
                "train_loss": 1.0,
                "uplink_payload_bytes": strategy.uplink_bytes,
                "uplink_message_bytes": strategy.uplink_bytes + ENVELOPE_BYTES,
                "downlink_payload_bytes": down,
                "downlink_message_bytes": down + ENVELOPE_BYTES,
                "downlink_catchup_bytes": strategy.catchup_bytes,
                "encode_seconds": 0.002,
                "compute_seconds": 0.05,
            }
            for place in range(trained)
        ]
    write_rows(cell / "rounds.jsonl", round_rows)
    write_rows(cell / "clients.jsonl", client_rows)
    if finished:
        last_five = [accuracy_at(strategy, seed, n) for n in range(rounds + 1)][-5:]
        student = {
            "model": "mlp",
            "hidden": [16],
            "accuracy": 0.8765,
            "agreement": 0.95,
            "parameters": 1210,
            "file_bytes": 5144,
            "teacher_parameters": 17226,
            "teacher_file_bytes": 69368,
            "steps": 600,
        }
        result = {
            "label": strategy.label,
            "method": "fedavg",
            "seed": seed,
            "rounds": rounds,
            "final_accuracy": sum(last_five) / len(last_five),
            "best_accuracy": max(last_five),
            "parameters": DENSE_BYTES // 4,
            "uplink": strategy.uplink or None,
            "downlink": strategy.downlink or None,
            "student": student if strategy.student else None,
            "total_seconds": 10.0 + seed,
            "finished": True,
        }
        (cell / "result.json").write_text(json.dumps(result), "utf-8")
    return cell


def explanation(label: str, seed: int) -> dict[str, Any]:
    """Return an `explain.json` as `fedcompress explain` writes it: dense, student, int8, pruned."""
    return {
        "version": 1,
        "label": label,
        "seed": seed,
        "rows": 1000,
        "class_rows": [250, 250, 250, 250],
        "class_names": ["0", "1", "2", "<3>"],
        "turns": {"1": 60, "64": 40},
        "calls": {"1": {"dense": 20}, "64": {"dense": 1}},
        "order": ["dense", "student", "int8.onnx", "pruned.safetensors"],
        "machine": {"processor": "2 cores", "cores": 2},
        "versions": {"onnxruntime": "1.30.0"},
        "samples": [
            {
                "label": 1,
                "answer": 2,
                "shape": [2, 2],
                "pixels": [[0.0, 1.0], [0.5, 0.2]],
                "text": "",
            }
        ],
        "models": [
            explained("dense", "dense", seed, size=40_000, speedup=1.0, right=0.9),
            explained("student", "student", seed, size=4_000, speedup=4.0, right=0.88),
            explained("int8.onnx", "onnx", seed, size=11_000, speedup=2.0, right=0.899),
            explained(
                "pruned.safetensors", "safetensors", seed, size=40_000, speedup=1.0, zero=0.5
            ),
        ],
        "problems": [{"file": "exports/cut.onnx", "reason": "onnxruntime cannot run it: <cut>"}],
    }


def explained(
    name: str,
    kind: str,
    seed: int,
    *,
    size: int,
    speedup: float,
    right: float = 0.9,
    zero: float = 0.0,
) -> dict[str, Any]:
    """Return one model of an `explain.json`."""
    us = (100.0 + seed) / speedup
    latency = {"cpu_us": us, "cpu_us_low": us - 1, "cpu_us_high": us + 2, "wall_us": 2 * us}
    dense = kind == "dense"
    layer = {
        "name": "layers.1.weight",
        "shape": [4, 8],
        "dense_shape": None if kind in ("dense", "student") else [4, 8],
        "nonzero": round(32 * (1 - zero)),
        "sparsity": zero,
        "error": None if kind in ("dense", "student") else 1e-4 + zero / 4,
        "kept_blocks": [[1.0, 1 - zero], [1 - zero, 1.0]],
        "error_blocks": None if kind in ("dense", "student") else [[0.0, 1e-4], [1e-2, zero]],
    }
    return {
        "name": name,
        "kind": kind,
        "file": f"exports/{name}",
        "recipe": {"prune": {"rows": 0.0, "entries": 0.5}, "quantize": "int8", "tune": 0}
        if "int8" in name
        else {},
        "verified": True if "int8" in name else None,
        "file_bytes": size,
        "parameters": size // 4,
        "nonzero": round(size // 4 * (1 - zero)),
        "multiply_adds": size // 5,
        "latency": {
            "1": {**latency, "speedup": speedup},
            "64": {**latency, "speedup": speedup},
        },
        "kernels": {"QGemm": 2} if "int8" in name else {"Gemm": 2},
        "accuracy": right + 0.002 * seed,
        "per_class_accuracy": [right, right - 0.04 * (not dense), None, 0.9],
        "gained": 0 if dense else 10,
        "lost": 0 if dense else 10 + round(1000 * (0.9 - right)),
        "agreement": 1.0 if dense else 0.96,
        "nll": 0.4,
        "ece": 0.02,
        "reliability": [[0.5, 0.45, 100], [0.95, 0.92, 890], [0.99, 1.0, 10]],
        "saliency_similarity": 1.0 if dense else 0.83,
        "saliency_maps": [[1.0, -0.2, 0.5, 0.1]],
        "layers": [layer],
    }


def write_explanations(folder: Path, label: str = "Quantized + distilled") -> None:
    """Explain the finished cells of one strategy."""
    for result in folder.glob("cells/*/result.json"):
        told = json.loads(result.read_text("utf-8"))
        if told["label"] == label:
            text = json.dumps(explanation(label, told["seed"]))
            (result.parent / "explain.json").write_text(text, "utf-8")


def write_rows(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def write_run(
    folder: Path,
    strategies: Sequence[FakeStrategy] = STRATEGIES,
    *,
    seeds: Sequence[int] = (1, 2, 3),
    rounds: int = 20,
    unfinished: Sequence[tuple[str, int]] = (),
    network: Sequence[str] = (),
) -> Path:
    """Write a run folder with every strategy and seed."""
    folder.mkdir()
    study = {
        "study": {
            "name": "digits: five ways",
            "rounds": rounds,
            "seeds": list(seeds),
            "data": {"name": "digits", "data_dir": None},
            "partition": {"kind": "dirichlet", "clients": 20, "alpha": 0.3},
            "training": {"optimizer": "sgd", "learning_rate": 0.05},
            "strategies": [
                {"label": s.label, "uplink": s.uplink, "downlink": s.downlink} for s in strategies
            ],
            "network": list(network),
        },
        "versions": {"python": "3.11.9", "flwr": "1.41.0", "torch": "2.13.0"},
        "machine": {"cpu": "2 cores", "system": "Linux"},
        "commit": "0123abcd",
        "data_fingerprint": "f00d",
        "created": "2026-01-01T00:00:00Z",
    }
    (folder / "study.json").write_text(json.dumps(study), "utf-8")
    for strategy in strategies:
        for seed in seeds:
            finished = (strategy.label, seed) not in unfinished
            write_cell(folder, strategy, seed, rounds, finished=finished)
    return folder


@pytest.fixture
def page_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures' own files, which take most of a report's time."""
    monkeypatch.setattr("simulations.report.write.FORMATS", ())


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Return a function that writes a run folder: `make_run(strategies, seeds=…, rounds=…)`."""

    def make(*args: Any, name: str = "run", **options: Any) -> Path:
        return write_run(tmp_path / name, *args, **options)

    return make


@pytest.fixture(scope="module")
def module_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write one run folder for the tests of a module that only read it."""
    return write_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def explained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write one run folder in which the models of one strategy are explained."""
    folder = write_run(tmp_path_factory.mktemp("explained") / "run", seeds=(1, 2))
    write_explanations(folder)
    return folder


@pytest.fixture
def explain() -> Callable[[Path], None]:
    """Return a function that explains cells of a run's folder."""
    return write_explanations


@pytest.fixture
def strategies() -> tuple[FakeStrategy, ...]:
    """Return the strategies of the synthetic run."""
    return STRATEGIES
