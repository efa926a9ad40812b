"""The summary table: one row per strategy, mean and interval over seeds."""

import pandas as pd

from simulations.report.intervals import mean_and_interval
from simulations.report.run import Run
from simulations.report.totals import Traffic, traffic_by_label, training_rounds

BYTES_PER_KB = 1000


def summary_table(run: Run) -> pd.DataFrame:
    """Return one row per strategy in the study's order.

    Only finished cells count; a strategy without one has NaN figures and `seeds_finished` 0.

    Returns
    -------
    pandas.DataFrame
        Columns `label`, `method`, `uplink`, `downlink` (text); `seeds_finished`,
        `seeds_expected`, `seeds_damaged`; `accuracy_percent` (mean over seeds),
        `accuracy_interval_percent` (half the 95 % t-interval, NaN with one seed),
        `accuracy_change_points` and
        `accuracy_change_interval_points` (against the first row, seed by seed, over the seeds
        that both finished); `uplink_kb`, `downlink_kb` (payload per client
        and round, 1 kB = 1000 B, the downlink with catch-up); `uplink_ratio`, `both_ways_ratio`
        (each round's update payloads), `all_traffic_ratio` (with catch-up and first model);
        `clients_rejected`, `clients_failed` (added over seeds); `seconds` (mean per seed).
    """
    traffic = traffic_by_label(run)
    accuracy = _accuracy_by_seed(run)
    return pd.DataFrame([_row(run, label, traffic.get(label), accuracy) for label in run.labels])


def _accuracy_by_seed(run: Run) -> dict[str, dict[int, float]]:
    """Return final accuracy in percent by label and seed, finished cells only."""
    found: dict[str, dict[int, float]] = {label: {} for label in run.labels}
    for row in run.results.to_dict("records"):
        if pd.notna(row["final_accuracy"]):
            found[str(row["label"])][int(row["seed"])] = 100 * float(row["final_accuracy"])
    return found


def _change(accuracies: dict[int, float], first: dict[int, float]) -> tuple[float, float]:
    """Return mean and interval of the difference, seed by seed, over the seeds that both have."""
    return mean_and_interval([v - first[seed] for seed, v in accuracies.items() if seed in first])


def _row(
    run: Run, label: str, traffic: Traffic | None, accuracy: dict[str, dict[int, float]]
) -> dict[str, object]:
    results = run.results
    if not results.empty:
        results = results[results["label"] == label]
    mean, interval = mean_and_interval(list(accuracy[label].values()))
    change, change_interval = _change(accuracy[label], accuracy[run.labels[0]])
    return {
        "label": label,
        "method": _text(results, "method"),
        "uplink": _text(results, "uplink"),
        "downlink": _text(results, "downlink"),
        "seeds_finished": len(results),
        "seeds_expected": run.seeds_expected.get(label, len(results)),
        "seeds_damaged": sum(cell.damaged and cell.label == label for cell in run.unfinished),
        "accuracy_percent": mean,
        "accuracy_interval_percent": interval,
        "accuracy_change_points": change,
        "accuracy_change_interval_points": change_interval,
        **_sent_columns(traffic),
        **_lost_clients(run, label),
        "seconds": float("nan") if results.empty else float(results["total_seconds"].mean()),
    }


def _sent_columns(traffic: Traffic | None) -> dict[str, float]:
    nan = float("nan")
    names = ("uplink_kb", "downlink_kb", "uplink_ratio", "both_ways_ratio", "all_traffic_ratio")
    if traffic is None:
        return dict.fromkeys(names, nan)
    up, down = traffic.uplink_messages, traffic.downlink_messages
    values = (
        traffic.uplink_payload_bytes / up / BYTES_PER_KB if up else nan,
        traffic.downlink_payload_bytes / down / BYTES_PER_KB if down else nan,
        traffic.uplink_ratio,
        traffic.both_ways_ratio,
        traffic.all_traffic_ratio,
    )
    return dict(zip(names, values, strict=True))


def _lost_clients(run: Run, label: str) -> dict[str, int]:
    rounds = training_rounds(run)
    if not rounds.empty:
        rounds = rounds[rounds["label"] == label]
    return {
        name: 0 if rounds.empty else int(rounds[name].sum())
        for name in ("clients_rejected", "clients_failed")
    }


def _text(results: pd.DataFrame, name: str) -> str:
    if results.empty or name not in results:
        return ""
    value = results[name].iloc[0]
    return value if isinstance(value, str) else ""
