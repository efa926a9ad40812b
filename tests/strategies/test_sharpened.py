"""Federated distillation: what travels is a mean, and the server's model follows it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, Krum
from torch import nn

from fedcompress import Compressed, ConfigError, compression_mod
from simulations.checkpoint import load_strategy_state, strategy_state
from strategies.predictions import predict_scores, target_logits
from strategies.sharpened import ARRAY, ROUND_KEY, Sharpened

CLIENTS = 4


def sharpened(toys, digits, strategy=None, **settings) -> Sharpened:
    proxy = digits["proxy"]
    return Sharpened(
        FedAvg(min_train_nodes=CLIENTS) if strategy is None else strategy,
        model=toys.seeded(toys.mlp, 0),
        inputs=lambda server_round: proxy,
        **settings,
    )


def scores_record(values: torch.Tensor) -> ArrayRecord:
    return ArrayRecord({ARRAY: Array(values.numpy())})


def answers(toys, digits, scores: str) -> list[torch.Tensor]:
    models = [toys.seeded(toys.mlp, seed) for seed in range(1, CLIENTS + 1)]
    return [predict_scores(model, digits["proxy"], scores) for model in models]


def zeros(digits) -> ArrayRecord:
    return scores_record(torch.zeros(len(digits["proxy"]), 10))


def play(strategy, arrays, sent: list[torch.Tensor], nodes, server_round: int = 1):
    """Play a round through the client's end of compression; give the arrays and the settings."""
    told = []
    grid = nodes(CLIENTS)
    messages = strategy.configure_train(server_round, arrays, ConfigRecord(), grid)
    replies = []
    for number, message in enumerate(sorted(messages, key=lambda m: m.metadata.dst_node_id)):

        def app(inside: Message, _: Context, number: int = number) -> Message:
            told.append(inside.content["config"][ROUND_KEY])
            content = RecordDict(
                {
                    "arrays": scores_record(sent[number]),
                    "metrics": MetricRecord({"num-examples": 10 * (number + 1)}),
                }
            )
            return Message(content, reply_to=inside)

        context = Context(1, number + 1, {"partition-id": number}, RecordDict(), {})
        replies.append(compression_mod(message, context, app))
    return (*strategy.aggregate_train(server_round, replies), told)


@pytest.mark.parametrize("uplink", [None, "raw()"])
def test_the_mean_of_logits_is_the_mean_of_the_clients_logits(toys, digits, nodes, uplink):
    sent = answers(toys, digits, "logits")
    strategy = Compressed(sharpened(toys, digits), uplink=uplink)
    arrays, metrics, told = play(strategy, zeros(digits), sent, nodes)
    wanted = sum((n + 1) * x for n, x in enumerate(sent)) / 10
    np.testing.assert_allclose(arrays[ARRAY].numpy(), wanted.numpy(), atol=1e-6)
    assert told == [0] * CLIENTS
    assert metrics["follow-kl-after"] < metrics["follow-kl-before"]


def test_quantized_predictions_are_an_eighth_of_dense_ones(toys, digits, nodes):
    sent = answers(toys, digits, "logits")
    strategy = Compressed(sharpened(toys, digits), uplink="quantize(4) | entropy()")
    arrays, _, _ = play(strategy, zeros(digits), sent, nodes)
    traffic = strategy.last_round
    dense = 4 * sent[0].numel()
    assert all(client.uplink_payload_bytes < dense / 7 for client in traffic.clients)
    wanted = sum((n + 1) * x for n, x in enumerate(sent)) / 10
    assert float((torch.tensor(arrays[ARRAY].numpy()) - wanted).norm() / wanted.norm()) < 0.2


def test_redrawn_rows_travel_beside_what_was_sent(toys, digits, nodes):
    strategy = Compressed(
        sharpened(toys, digits, scores="probabilities", sharpen=0.1, redraw=True), uplink="raw()"
    )
    sent = answers(toys, digits, "probabilities")
    arrays, _, told = play(strategy, zeros(digits), sent, nodes)
    mean = torch.tensor(arrays[ARRAY].numpy())
    # The second round's replies hold what was sent beside their own predictions.
    other = [x.flip(0) for x in sent]
    arrays, _, told = play(strategy, arrays, [x + mean for x in other], nodes, 2)
    wanted = sum((n + 1) * x for n, x in enumerate(other)) / 10
    np.testing.assert_allclose(arrays[ARRAY].numpy(), wanted.numpy(), atol=1e-6)
    assert told == [1] * CLIENTS


def test_logits_are_centred_and_the_server_follows_their_classes(toys, digits, nodes):
    sent = [x + 3.0 for x in answers(toys, digits, "logits")]
    strategy = sharpened(toys, digits, steps=300, patience=300, learning_rate=0.01)
    arrays, metrics, _ = play(strategy, zeros(digits), sent, nodes)
    mean = torch.tensor(arrays[ARRAY].numpy())
    torch.testing.assert_close(mean.mean(1), torch.zeros(len(mean)), atol=1e-5, rtol=0)
    assert metrics["follow-agreement"] > 0.8
    followed = predict_scores(strategy.model, digits["proxy"], "logits")
    assert float((followed.argmax(1) == mean.argmax(1)).double().mean()) > 0.8


def test_sharpening_lowers_the_entropy_and_keeps_the_order():
    shares = torch.softmax(torch.randn(50, 10, generator=torch.Generator().manual_seed(0)), 1)

    def entropy(sharpen: float) -> float:
        target = torch.softmax(target_logits(shares, "probabilities", sharpen), 1)
        assert torch.equal(target.argsort(1), shares.argsort(1))
        return float(-(target * target.log()).sum(1).mean())

    plain = float(-(shares * shares.log()).sum(1).mean())
    assert entropy(1.0) == pytest.approx(plain, rel=1e-5)
    assert entropy(0.02) < entropy(0.05) < entropy(0.1) < plain


def test_what_a_lossy_codec_leaves_of_probabilities_is_a_target_still():
    target = target_logits(torch.tensor([[-0.01, 0.0, 1.01]]), "probabilities", 1.0)
    assert bool(target.isfinite().all())


def test_a_round_without_replies_keeps_the_predictions_and_their_round(toys, digits, nodes):
    strategy = sharpened(toys, digits)
    sent = answers(toys, digits, "logits")
    arrays, _, _ = play(strategy, zeros(digits), sent, nodes)
    before = {name: x.clone() for name, x in strategy.model.state_dict().items()}
    strategy.configure_train(2, arrays, ConfigRecord(), nodes(CLIENTS))
    assert strategy.aggregate_train(2, [])[0] is None
    assert all(torch.equal(before[n], x) for n, x in strategy.model.state_dict().items())
    _, _, told = play(strategy, arrays, sent, nodes, 3)
    assert told == [1] * CLIENTS


def test_a_resumed_server_goes_on_as_one_that_never_stopped(toys, digits, nodes):
    one, other = sharpened(toys, digits), sharpened(toys, digits)
    sent = answers(toys, digits, "logits")
    arrays, _, _ = play(one, zeros(digits), sent, nodes)
    state = strategy_state(one)
    first, _, told = play(one, arrays, sent, nodes, 2)
    load_strategy_state(other, state)
    second, _, told_too = play(other, arrays, sent, nodes, 2)
    assert told == told_too == [1] * CLIENTS
    assert first[ARRAY].data == second[ARRAY].data
    for ours, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ConfigError, match="resume with the settings that wrote it"):
        other.load_state_dict({"momentum": 1.0})


def test_a_client_with_other_rows_is_left_out_with_its_reason(toys, digits, nodes):
    sent = answers(toys, digits, "logits")
    strategy = Compressed(sharpened(toys, digits), uplink="raw()")
    arrays, _, _ = play(strategy, zeros(digits), [sent[0][:-1], *sent[1:]], nodes)
    [fault] = [client for client in strategy.last_round.clients if client.status != "ok"]
    assert f"array 'scores' is ({len(sent[0]) - 1}, 10)" in str(fault.reason)
    wanted = sum((n + 2) * x for n, x in enumerate(sent[1:])) / 9
    np.testing.assert_allclose(arrays[ARRAY].numpy(), wanted.numpy(), atol=1e-6)


def test_rules_that_choose_among_clients_choose_among_predictions(toys, digits, nodes):
    sent = answers(toys, digits, "logits")
    sent[0] = sent[0] + 100 * torch.randn(sent[0].shape)
    rule = Krum(num_malicious_nodes=1, min_train_nodes=CLIENTS)
    strategy = Compressed(sharpened(toys, digits, rule), uplink="raw()")
    arrays, _, _ = play(strategy, zeros(digits), sent, nodes)
    assert any(np.allclose(arrays[ARRAY].numpy(), x.numpy(), atol=1e-5) for x in sent[1:])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scores": "logit"}, "scores must be 'logits' or 'probabilities', got 'logit'"),
        ({"sharpen": 0.1}, "sharpen must be 1 where logits are sent"),
        ({"scores": "probabilities", "sharpen": 0}, r"sharpen must be in \(0, 1\], got 0"),
        ({"steps": 0}, "Sharpened: steps must be a whole number >= 1, got 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(toys, digits, settings, said):
    with pytest.raises(ConfigError, match=said):
        sharpened(toys, digits, **settings)


def test_arrays_that_are_no_predictions_are_refused(toys, digits, nodes):
    with pytest.raises(ConfigError, match=r"exchanges one array 'scores', got 0\.weight"):
        sharpened(toys, digits).configure_train(
            1, toys.arrays_of(nn.Sequential(nn.Linear(2, 2))), ConfigRecord(), nodes(CLIENTS)
        )


def test_compression_stands_outside(toys, digits):
    with pytest.raises(ConfigError, match="stands inside"):
        sharpened(toys, digits, Compressed(FedAvg()))
