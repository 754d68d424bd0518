"""Losses and schedules against closed forms and slow references."""

import math

import pytest

torch = pytest.importorskip("torch")

from spikeinterface_huidurep.model.encoder import EncoderConfig, SpikeEncoder  # noqa: E402
from spikeinterface_huidurep.training.ssl import (  # noqa: E402
    MomentumContrast,
    info_nce,
    learning_rate_at,
    masked_mse,
    momentum_at,
    run_in_buckets,
)
from spikeinterface_huidurep.training.views import Views  # noqa: E402


def make_views(n_spikes=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    n_channels = torch.arange(n_spikes) % 12 + 1
    return Views(
        waveforms=5 * draw(n_spikes, 12, 64),
        positions=50 * draw(n_spikes, 12, 2),
        channel_mask=torch.arange(12) < n_channels.unsqueeze(1),
        clean_compressed=draw(n_spikes, 12, 64),
        aligned_compressed=draw(n_spikes, 12, 64),
    )


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MomentumContrast(
        SpikeEncoder(EncoderConfig(width=16, n_layers=2, feed_forward=32)), hidden=32, n_projected=16
    )


def test_info_nce_of_equal_vectors_is_log_n():
    same = torch.ones(7, 5)
    assert info_nce(same, same, temperature=0.2).item() == pytest.approx(0.4 * math.log(7), abs=1e-5)


def test_info_nce_of_orthogonal_pairs():
    pairs = torch.eye(6)
    expected = 0.4 * math.log(1 + 5 * math.exp(-1 / 0.2))
    assert info_nce(pairs, 3 * pairs, temperature=0.2).item() == pytest.approx(expected, abs=1e-6)


def test_info_nce_equals_the_slow_reference():
    queries, keys = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(1))
    total = 0.0
    for i in range(9):
        similarities = [float(queries[i] @ keys[j] / (queries[i].norm() * keys[j].norm())) / 0.3 for j in range(9)]
        total -= similarities[i] - math.log(sum(math.exp(value) for value in similarities))
    assert info_nce(queries, keys, temperature=0.3).item() == pytest.approx(2 * 0.3 * total / 9, rel=1e-5)


def test_masked_mse_counts_existing_channels_only():
    predicted, target = torch.zeros(2, 3, 4), torch.full((2, 3, 4), 2.0)
    target[0, 2] = 100.0
    mask = torch.tensor([[True, True, False], [True, False, False]])
    target[1, 0] = 5.0
    assert masked_mse(predicted, target, mask).item() == pytest.approx((4 + 4 + 25) / 3)
    assert masked_mse(predicted, target, torch.zeros(2, 3, dtype=torch.bool)).item() == 0


def test_momentum_schedule():
    assert momentum_at(0, 100) == pytest.approx(0.99)
    assert momentum_at(50, 100) == pytest.approx(0.995)
    assert momentum_at(100, 100) == pytest.approx(1.0)
    values = [momentum_at(step, 100) for step in range(101)]
    assert values == sorted(values)


def test_learning_rate_schedule():
    rates = [learning_rate_at(step, 100, 1e-3, 10) for step in range(101)]
    assert rates[0] == pytest.approx(1e-4) and rates[9] == pytest.approx(1e-3)
    assert rates[55] == pytest.approx(0.5e-3) and rates[100] == pytest.approx(0)


def test_momentum_update(model):
    before = [value.clone() for value in model.key_encoder.parameters()]
    with torch.no_grad():
        for value in model.encoder.parameters():
            value.add_(1.0)
    model.update_keys(0.9)
    for key_value, value, old in zip(model.key_encoder.parameters(), model.encoder.parameters(), before, strict=True):
        torch.testing.assert_close(key_value, 0.9 * old + 0.1 * value)
        assert not key_value.requires_grad


def test_buckets_change_nothing(model):
    view = make_views()
    embeddings, denoised = model.encoder.encode_and_decode(view.waveforms, view.positions, view.channel_mask)
    found = run_in_buckets(model.encoder.encode_and_decode, view, n_buckets=3)
    torch.testing.assert_close(found[0], embeddings, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1], denoised, atol=1e-5, rtol=0)


def test_loss_reaches_query_network_only_and_is_the_sum_of_its_parts(model):
    model.contrast, model.alpha, model.beta = 0.3, 0.5, 2.0
    loss, parts = model(make_views(seed=0), make_views(seed=1))
    expected = 0.3 * parts["contrastive"] + 0.5 * parts["dae"] + 2 * parts["read"]
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    for name, value in model.named_parameters():
        assert (value.grad is None) == name.startswith("key_"), name


def test_temperature_is_checked():
    with pytest.raises(ValueError, match="temperature"):
        MomentumContrast(SpikeEncoder(EncoderConfig(width=16, n_layers=1)), temperature=0)
