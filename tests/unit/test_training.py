"""The training script: resumable, described by its card, honest about wrong configurations."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from spikeinterface_huidurep.model import load_encoder  # noqa: E402
from spikeinterface_huidurep.model.encoder import EncoderConfig, SpikeEncoder  # noqa: E402
from spikeinterface_huidurep.model.paper_encoder import PaperConfig  # noqa: E402
from spikeinterface_huidurep.training.calibration import calibrate_encoder, compute_inverse_root  # noqa: E402
from spikeinterface_huidurep.training.config import TrainConfig, load_config  # noqa: E402
from spikeinterface_huidurep.training.data import make_source  # noqa: E402
from spikeinterface_huidurep.training.real import RealSource  # noqa: E402
from spikeinterface_huidurep.training.train import Trainer, main  # noqa: E402
from spikeinterface_huidurep.training.units import DEFAULT_WINDOW, Window  # noqa: E402
from spikeinterface_huidurep.training.validation import score_mixture, score_neighbours  # noqa: E402
from spikeinterface_huidurep.training.views import ViewConfig, draw_pair, make_static  # noqa: E402

TINY = TrainConfig(
    n_steps=6,
    sites_per_batch=2,
    units_per_site=6,
    n_sites=10,
    n_warmup=2,
    hidden=16,
    n_projected=8,
    log_every=2,
    checkpoint_every=3,
    validate_every=0,
    validation_sites=1,
    validation_spikes=12,
    calibration_batches=4,
    num_threads=1,
)
TINY_ENCODER = EncoderConfig(width=16, n_layers=1, feed_forward=16, n_heads=2)


@pytest.fixture(autouse=True)
def restore_threads():
    """The trainer sets torch's number of threads; other tests keep theirs."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


TINY_PAPER = PaperConfig(num_layers=2, width=8, n_heads=2, feed_forward=8, n_samples=32, n_before=12)


def make_trainer(folder, encoder=TINY_ENCODER, **changes):
    return Trainer(replace(TINY, **changes), ViewConfig(), encoder, folder, card={"command": "test"})


@pytest.mark.parametrize("encoder", [TINY_ENCODER, TINY_PAPER], ids=["channels", "paper"])
def test_resumed_run_equals_an_uninterrupted_one(encoder, tmp_path):
    whole = make_trainer(tmp_path / "whole", encoder).run(progress=False)
    make_trainer(tmp_path / "halves", encoder).run(n_steps=3, progress=False)
    second = make_trainer(tmp_path / "halves", encoder)
    second.resume()
    assert second.step == 3
    halves = second.run(progress=False)
    for first_value, second_value in zip(
        load_encoder(whole).state_dict().values(), load_encoder(halves).state_dict().values(), strict=True
    ):
        assert torch.equal(first_value, second_value)
    assert load_encoder(whole).config == encoder
    with open(tmp_path / "halves" / "log.csv") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == [2, 3, 4, 6]


def test_outputs_and_card(tmp_path):
    path = make_trainer(tmp_path, n_steps=2, log_every=1).run(progress=False)
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["status"] == "complete" and card["seed"] == 0 and card["train_config"]["n_steps"] == 2
    assert list(card["data"]) == ["synthetic neurons and noise"]
    assert set(card["validation"]) >= {"embedding_ari", "embedding_neighbours", "pca_ari", "pca_neighbours"}
    with open(tmp_path / "log.csv") as file:
        row = next(csv.DictReader(file))
    wanted = {"step", "loss", "contrastive", "dae", "lr", "embedding_sd", "positive_similarity", "negative_similarity"}
    assert wanted <= set(row) and all(np.isfinite(float(value)) for value in row.values())


def test_partial_run_says_so(tmp_path):
    path = make_trainer(tmp_path).run(n_steps=1, progress=False)
    assert json.loads(path.with_suffix(".json").read_text())["status"] == "partial: step 1 of 6"


def test_training_lowers_the_loss(tmp_path):
    trainer = make_trainer(tmp_path, n_steps=30, log_every=10, learning_rate=3e-3, validation_spikes=8)
    trainer.run(progress=False)
    assert trainer.rows[-1]["loss"] < 0.8 * trainer.rows[0]["loss"]
    assert trainer.rows[-1]["embedding_sd"] > 0.01


@pytest.mark.parametrize(
    "name, layout, n_samples",
    [("paper", "paper", 121), *((name, "channels", 64) for name in ("finetune", "smoke", "v2"))],
)
def test_shipped_configs_load(name, layout, n_samples):
    train_config, _, encoder_config = load_config(name)
    assert train_config.n_steps > 0 and encoder_config.layout == layout and encoder_config.n_samples == n_samples


def test_changed_fields_of_a_config():
    changes = {"train.seed": 7, "views.drift_probability": 0.0, "encoder.n_dims": 16}
    train_config, view_config, encoder_config = load_config("v2", changes)
    assert (train_config.seed, view_config.drift_probability, encoder_config.n_dims) == (7, 0.0, 16)
    assert train_config.n_steps == load_config("v2")[0].n_steps
    for wrong in ("train.steps", "optimiser.steps", "seed"):
        with pytest.raises(ValueError, match="unknown"):
            load_config("v2", {wrong: 3})


def test_wrong_configs_are_named(tmp_path):
    with pytest.raises(ValueError, match="finetune, paper, smoke, v2"):
        load_config("v9")
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nsteps = 3\n")
    with pytest.raises(ValueError, match="unknown fields in .train.: steps"):
        load_config(str(path))
    path.write_text('[encoder]\nlayout = "paper"\nn_layers = 4\n')
    with pytest.raises(ValueError, match="unknown fields in .encoder.: n_layers"):
        load_config(str(path))
    path.write_text('[encoder]\nlayout = "convolutional"\n')
    with pytest.raises(ValueError, match="no encoder layout 'convolutional', wanted 'channels' or 'paper'"):
        load_config(str(path))
    path.write_text("[optimiser]\nsteps = 3\n")
    with pytest.raises(ValueError, match="unknown table"):
        load_config(str(path))


def test_nothing_to_resume(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text("[train]\nn_sites = 4\nvalidation_sites = 1\nvalidation_spikes = 8\nnum_threads = 1\n")
    with pytest.raises(ValueError, match="nothing to resume"):
        main(["--config", str(path), "--out", str(tmp_path / "out"), "--resume"])


def test_scores_of_separated_and_mixed_units():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 40)
    centres = 20 * rng.normal(size=(3, 5))
    separated = centres[labels] + rng.normal(size=(120, 5))
    assert score_mixture(separated, labels) == 1.0 and score_neighbours(separated, labels) == 1.0
    mixed = rng.normal(size=(120, 5))
    assert abs(score_mixture(mixed, labels)) < 0.1 and score_neighbours(mixed, labels) < 0.6


@pytest.mark.parametrize("window", [DEFAULT_WINDOW, Window(n_samples=121, n_before=42)])
def test_real_source_from_a_made_up_file(window, tmp_path):
    """The reader of real mean waveforms, on a file of the same layout."""
    rng = np.random.default_rng(0)
    n_units = 40
    samples = np.arange(61)
    shape = -np.exp(-0.5 * ((samples - 15) / 3) ** 2) + 0.4 * np.exp(-0.5 * ((samples - 26) / 5) ** 2)
    decay = np.exp(-np.abs(np.arange(14) - 7) / 2.0)
    scale = rng.uniform(80, 200, size=n_units)
    waveforms = (scale[:, None, None] * decay[:, None] * shape).astype(np.float32)
    path = tmp_path / "brody.npz"
    peak, electrode = np.full(n_units, 7), np.full(n_units, 101.0)
    np.savez(path, templates=waveforms, peak_channel=peak, electrode=electrode)
    source = RealSource(path, seed=0, window=window)
    assert [len(group[0]) for group in source.groups] == [36]  # every tenth is held out
    units = source.draw(2, 20, torch.Generator().manual_seed(0))
    spectra = units.compute_spectra(torch.zeros(40, 2))
    assert spectra.shape == (40, 24, window.n_bins) and units.positions.shape == (40, 24, 2)
    long = torch.fft.irfft(spectra, n=window.n_fft)
    assert (long[:, 7].argmin(dim=1) == window.origin).all() and (long[:, 14:] == 0).all()
    assert units.channel_mask[:, :14].all() and not units.channel_mask[:, 14:].any()
    # far away from the probe nothing is left
    assert units.compute_spectra(torch.full((40, 2), 2000.0)).abs().max() < 1e-3 * spectra.abs().max()


def test_calibrated_embedding_has_unit_noise_and_is_a_linear_image():
    encoder = SpikeEncoder(TINY_ENCODER).eval()
    source = make_source(None, n_sites=10, fraction_real=0.0, seed=0)
    config = ViewConfig()
    calibrated = calibrate_encoder(encoder, source, config, n_batches=6, n_sites=8, n_units=32, seed=0)
    pair = draw_pair(source, 8, 64, make_static(config), torch.Generator().manual_seed(5))
    with torch.inference_mode():
        plain, _ = (encoder.encode(view.waveforms, view.positions, view.channel_mask) for view in pair)
        first, second = (calibrated.encode(view.waveforms, view.positions, view.channel_mask) for view in pair)
    noise_variance = (first - second).var(dim=0) / 2
    assert noise_variance.mean().item() == pytest.approx(1, abs=0.3)
    assert noise_variance.max() < 3
    with_bias = torch.cat([plain, torch.ones(len(plain), 1)], dim=1).double()
    image = with_bias @ torch.linalg.lstsq(with_bias, first.double()).solution
    torch.testing.assert_close(image.float(), first, atol=1e-2, rtol=1e-3)


def test_inverse_root():
    covariance = torch.diag(torch.tensor([4.0, 1.0, 0.25]))
    expected = torch.diag(torch.tensor([0.5, 1.0, 2.0]))
    torch.testing.assert_close(compute_inverse_root(covariance, ridge=0.0), expected)
