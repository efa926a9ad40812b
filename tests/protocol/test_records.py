"""Records that are made without Flower's checks are those that it would make."""

from __future__ import annotations

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedcompress.flower_adapter import filled


def test_records_are_those_of_flower() -> None:
    values = {"spec": "raw()", "round": 3, "share": 0.5, "is": True, "many": [1, 2], "raw": b"\0"}
    assert filled(ConfigRecord(), values) == ConfigRecord(values)
    assert vars(filled(ConfigRecord(), values)).keys() == vars(ConfigRecord(values)).keys()
    records = {
        "arrays": ArrayRecord(),
        "metrics": MetricRecord({"loss": 1.0}),
        "config": ConfigRecord(values),
    }
    made = filled(RecordDict(), records)
    assert made == RecordDict(records)
    assert list(made) == list(records)
    assert made["config"] is records["config"]
    made["config"]["round"] = 4  # it can be changed as any other
    assert vars(made).keys() == vars(RecordDict(records)).keys()
