"""Turn a round into the rows of `rounds.jsonl` and `clients.jsonl`."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import MetricRecord

from fedcompress.traffic import (
    DOWNLINK_METRIC,
    REJECTED_METRIC,
    UPLINK_METRIC,
    ClientDownlink,
    ClientTraffic,
    RoundTraffic,
)
from simulations.rounds import ClientReport, Round
from simulations.timeline import ClientWork, RoundTimeline, split_round, trained_together
from simulations.training import Evaluation

Row = dict[str, Any]

# Metrics of a round that its row says under other names.
_SAID_ALREADY = {UPLINK_METRIC, DOWNLINK_METRIC, REJECTED_METRIC, "train_loss"}


def before_training_row(evaluation: Evaluation | None, evaluate_seconds: float) -> Row:
    """Row of round 0: the model before training."""
    return {
        "round": 0,
        **_evaluation(evaluation),
        "evaluate_seconds": evaluate_seconds,
    }


def client_rows(
    done: Round,
    traffic: RoundTraffic,
    client_of: Callable[[int], int | None],
    compute_seconds: Mapping[int, float],
) -> list[Row]:
    """One row per client that was asked, in the order in which they were asked.

    Parameters
    ----------
    done : Round
        The round.
    traffic : RoundTraffic
        What `Compressed` noted of it.
    client_of : callable
        Partition id of a node that has said nothing.
    compute_seconds : mapping of int to float
        Seconds of each node's whole call, encoding included, where the engine measures them;
        elsewhere the client's own word for training counts, and encoding is added.
    """
    outcomes = {client.node_id: client for client in traffic.clients}
    downlinks = {client.node_id: client for client in traffic.downlink}
    sent: dict[tuple[int, str], tuple[int, int]] = {
        (message.node_id, message.direction): (message.payload_bytes, message.message_bytes)
        for message in done.traffic
    }
    silent = ClientTraffic(0, "error")
    rows = []
    for message in done.messages:
        node_id = message.metadata.dst_node_id
        outcome = outcomes.get(node_id, silent)
        report = done.reports.get(node_id, ClientReport(None, None, None, None))
        up, down = sent.get((node_id, "uplink"), (0, 0)), sent.get((node_id, "downlink"), (0, 0))
        answered = node_id in done.reports
        rows.append(
            {
                "round": done.number,
                "client": report.client if report.client is not None else client_of(node_id),
                "node_id": node_id,
                "status": outcome.status if answered else "timeout",
                "reason": outcome.reason if answered else "no reply in time",
                "num_examples": report.num_examples,
                "train_loss": _finite(report.train_loss),
                "uplink_payload_bytes": up[0],
                "uplink_message_bytes": up[1],
                "uplink_payload_checksum": outcome.uplink_checksum,
                "downlink_payload_bytes": down[0],
                "downlink_message_bytes": down[1],
                "downlink_catchup_bytes": downlinks.get(
                    node_id, ClientDownlink(node_id, 0, 0)
                ).catchup_bytes,
                "encode_seconds": outcome.encode_seconds,
                "compute_seconds": _compute_seconds(
                    compute_seconds.get(node_id) if answered else None, report, outcome
                ),
            }
        )
    return rows


def _compute_seconds(
    measured: float | None, report: ClientReport, outcome: ClientTraffic
) -> float | None:
    if measured is not None or report.train_seconds is None:
        return measured
    return report.train_seconds + (outcome.encode_seconds or 0.0)


def timeline_of(
    done: Round,
    traffic: RoundTraffic,
    client_of: Callable[[int], int | None],
    workers: int,
) -> RoundTimeline:
    """Join what the server, the engine and the clients say of a round's seconds.

    Parameters
    ----------
    done : Round
        The round.
    traffic : RoundTraffic
        What `Compressed` noted of it.
    client_of : callable
        Partition id of a node.
    workers : int
        How many workers the engine has.
    """
    outcomes = {client.node_id: client for client in traffic.clients}
    silent = ClientReport(None, None, None, None)
    work = []
    for span in done.spans:
        outcome = outcomes.get(span.node_id, ClientTraffic(span.node_id, "error"))
        seconds = done.reports.get(span.node_id, silent).train_seconds
        client, sent = client_of(span.node_id), outcome.uplink_payload_bytes
        work.append(ClientWork.of(span, client, seconds, outcome.encode_seconds, sent))
    here = sum(phase.seconds for phase in done.phases if phase.name == "decode")
    return RoundTimeline(
        done.number,
        done.began,
        done.round_seconds,
        done.phases,
        trained_together(work),
        workers,
        max(traffic.decode_seconds - here, 0.0),
    )


def round_row(
    done: Round,
    traffic: RoundTraffic,
    clients: list[Row],
    dense_bytes: int,
    timeline: RoundTimeline,
) -> Row:
    """Sum the clients' rows of a round, and add what the server measured.

    `train_loss` is the mean over the clients kept, weighted by their examples.
    """
    status = Counter(row["status"] for row in clients)
    by_stream: Counter[str] = Counter()
    for client in traffic.clients:
        by_stream.update(client.uplink_bytes_by_stream)
    kept = [r for r in clients if r["status"] == "ok" and r["train_loss"] is not None]
    examples = sum(row["num_examples"] for row in kept)
    loss = sum(row["train_loss"] * row["num_examples"] for row in kept)
    sums = {
        name: sum(row[name] for row in clients)
        for name in (
            "uplink_payload_bytes",
            "uplink_message_bytes",
            "downlink_payload_bytes",
            "downlink_message_bytes",
            "downlink_catchup_bytes",
        )
    }
    return {
        "round": done.number,
        **_evaluation(done.evaluation),
        "train_loss": loss / examples if examples else None,
        "clients_sampled": len(clients),
        "clients_aggregated": status["ok"],
        "clients_rejected": status["rejected"],
        "clients_failed": status["error"] + status["timeout"],
        **sums,
        "dense_bytes": dense_bytes,
        "uplink_bytes_by_stream": dict(sorted(by_stream.items())),
        "round_seconds": done.round_seconds,
        "train_seconds": done.train_seconds,
        "encode_seconds": sum(row["encode_seconds"] or 0.0 for row in clients),
        "decode_seconds": traffic.decode_seconds,
        "aggregate_seconds": traffic.aggregate_seconds,
        "evaluate_seconds": done.evaluate_seconds,
        "split_seconds": split_round(timeline),
        "strategy_metrics": _strategy_metrics(done.metrics),
    }


def _strategy_metrics(metrics: MetricRecord | None) -> Row:
    """Take what a strategy says of its round, and the means of what else clients reported."""
    return {
        name: [_finite(x) for x in value] if isinstance(value, list) else _finite(value)
        for name, value in sorted((metrics or {}).items())
        if name not in _SAID_ALREADY
    }


def _evaluation(evaluation: Evaluation | None) -> Row:
    if evaluation is None:
        return {"accuracy": None, "loss": None}
    row: Row = {"accuracy": _finite(evaluation.accuracy), "loss": _finite(evaluation.loss)}
    if evaluation.parts:
        row["accuracy_by_part"] = {name: _finite(x) for name, x in evaluation.parts.items()}
    return row


def _finite(value: float | None) -> float | None:
    """JSON has no NaN: what is not finite is null."""
    return value if value is not None and math.isfinite(value) else None
