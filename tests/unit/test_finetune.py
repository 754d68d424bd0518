"""Fine-tuning: units and noise of a recording, and the way from a recording to weights that the sorter takes."""

import json
from dataclasses import replace

import numpy as np
import pytest
from spikeinterface.core import load
from spikeinterface.sorters import run_sorter

torch = pytest.importorskip("torch")

from spikeinterface_huidurep import cli  # noqa: E402
from spikeinterface_huidurep.model import load_encoder, save_encoder  # noqa: E402
from spikeinterface_huidurep.model.encoder import EncoderConfig, SpikeEncoder, expand_amplitude  # noqa: E402
from spikeinterface_huidurep.training import finetune  # noqa: E402
from spikeinterface_huidurep.training import recording as recording_module  # noqa: E402
from spikeinterface_huidurep.training.finetune import finetune_encoder  # noqa: E402
from spikeinterface_huidurep.training.recording import (  # noqa: E402
    ABSENT_UM,
    RecordingSource,
    Site,
    cut_windows,
    load_sites,
    save_sites,
)
from spikeinterface_huidurep.training.views import ViewConfig, draw_pair, make_static  # noqa: E402

TINY_TOML = """
[train]
n_steps = 6
n_frozen = 2
sites_per_batch = 2
units_per_site = 6
n_warmup = 1
hidden = 16
n_projected = 8
log_every = 2
checkpoint_every = 4
validate_every = 0
validation_sites = 1
validation_spikes = 12
whiten_embedding = false
"""
N_CHANNELS = 4


def make_sites(n_units=(3, 1), n_windows=60):
    """Places of a made-up tetrode with smooth units of 10 to 30 noise SD."""
    rng = np.random.default_rng(0)
    time = np.arange(64) - 24
    contacts = np.array([[0, 0], [20, 0], [0, 20], [20, 20]], dtype="float32")
    positions = np.full((12, 2), ABSENT_UM, dtype="float32")
    positions[:N_CHANNELS] = contacts
    sites = []
    for n in n_units:
        widths, peaks = rng.uniform(2, 6, n), rng.uniform(10, 30, n)
        shapes = -np.exp(-0.5 * (time / widths[:, None]) ** 2) * peaks[:, None]
        weights = rng.uniform(0.1, 0.8, (n, 12))
        weights[:, 0], weights[:, N_CHANNELS:] = 1, 0
        noise = rng.normal(size=(n_windows, 12, 64))
        noise[:, N_CHANNELS:] = 0
        sites.append(
            Site(
                (weights[:, :, None] * shapes[:, None]).astype("float32"),
                noise.astype("float16"),
                positions,
                np.arange(12) < N_CHANNELS,
            )
        )
    return sites


@pytest.fixture(autouse=True)
def restore_threads():
    n_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture
def tiny_config(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_TOML)
    return str(path)


@pytest.fixture
def tiny_weights(tmp_path):
    config = EncoderConfig(width=16, n_layers=1, feed_forward=16, n_heads=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return save_encoder(SpikeEncoder(config), tmp_path / "tiny.safetensors", card={})


@pytest.fixture
def made_up_first_pass(monkeypatch):
    monkeypatch.setattr(finetune, "gather_sites", lambda *arguments: make_sites())


def test_first_rows_of_a_site_are_its_units():
    sites = make_sites(n_units=(3,))
    view_config = make_static(ViewConfig(amplitude_sd=0.0, jitter=0.0))
    source = RecordingSource(sites)
    view, _ = draw_pair(source, 2, 10, view_config, torch.Generator().manual_seed(0))
    clean = expand_amplitude(view.aligned_compressed).numpy()
    for site in range(2):
        found = clean[10 * site : 10 * site + 3]
        relative_error = np.abs(found - sites[0].waveforms).max() / np.abs(found).max()
        assert relative_error < 0.05  # the ends are faded out
    assert np.abs(clean[3:10] - clean[3]).max() > 1  # the others are variants


def test_noise_of_the_views_is_that_of_the_recording():
    sites = make_sites(n_units=(2,))
    sites[0].noise[:] = 0.25
    view_config = make_static(ViewConfig())
    view, _ = draw_pair(RecordingSource(sites), 1, 8, view_config, torch.Generator().manual_seed(0))
    residual = (view.waveforms - expand_amplitude(view.clean_compressed))[view.channel_mask]
    torch.testing.assert_close(residual.abs(), torch.full_like(residual, 0.25), atol=1e-3, rtol=0)
    assert view.channel_mask.sum(dim=1).eq(N_CHANNELS).all()


def test_sites_survive_their_file(tmp_path):
    sites = make_sites()
    save_sites(sites, tmp_path / "sites.npz")
    for site, loaded in zip(sites, load_sites(tmp_path / "sites.npz"), strict=True):
        for name, values in vars(site).items():
            np.testing.assert_array_equal(getattr(loaded, name), values)
            assert getattr(loaded, name).dtype == values.dtype


def test_cut_windows_are_pieces_of_the_traces(tiny_recording):
    windows = cut_windows(tiny_recording, 64, 24, seed=0)
    assert windows.shape[1:] == (tiny_recording.get_num_channels(), 64)
    traces = tiny_recording.get_traces().astype("float32")
    for window in windows[:3]:
        starts = np.flatnonzero(np.isclose(traces[:, 0], window[0, 0], atol=1e-3))
        assert any(np.allclose(traces[start : start + 64].T, window, atol=1e-2) for start in starts)


def test_resumed_run_equals_an_uninterrupted_one(
    tmp_path, tiny_recording, tiny_config, tiny_weights, made_up_first_pass, monkeypatch
):
    kwargs = dict(params={"weights": str(tiny_weights)}, config=tiny_config, progress=False)
    whole = finetune_encoder(tiny_recording, tmp_path / "whole.safetensors", **kwargs)
    halves = tmp_path / "halves.safetensors"

    def stop(trainer, step):
        if step == 5:
            raise KeyboardInterrupt
        return take_step(trainer, step)

    take_step = finetune.Trainer._take_step
    monkeypatch.setattr(finetune.Trainer, "_take_step", stop)
    with pytest.raises(KeyboardInterrupt):
        finetune_encoder(tiny_recording, halves, **kwargs)
    assert not halves.exists()
    monkeypatch.setattr(finetune.Trainer, "_take_step", take_step)
    monkeypatch.setattr(finetune, "gather_sites", None)  # not needed a second time
    finetune_encoder(tiny_recording, halves, resume=True, **kwargs)
    first, second = load_encoder(whole).state_dict(), load_encoder(halves).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    card = json.loads(halves.with_suffix(".json").read_text())
    assert card["status"] == "complete" and card["started_from"].startswith("tiny-")
    assert "4 clusters at 2 places" in card["data"]["recording"]
    assert {"log.csv", "loss.png", "checkpoint.pt"} <= {path.name for path in (tmp_path / "halves_training").iterdir()}


def test_encoder_waits_for_the_heads(tmp_path, tiny_weights):
    train_config, view_config, _ = finetune.load_config("finetune")
    train_config = replace(train_config, n_steps=4, n_frozen=2, sites_per_batch=1, units_per_site=6)
    start = load_encoder(tiny_weights)
    source = RecordingSource(make_sites())
    trainer = finetune.Trainer(train_config, view_config, start.config, tmp_path, source=source, start=start)
    before = {name: value.clone() for name, value in start.state_dict().items()}
    for step in range(4):
        trainer._take_step(step)
        after = trainer.model.encoder.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before) == (step < 2)


@pytest.mark.parametrize("name", ["mine.pt", "there.safetensors"])
def test_out_must_be_a_new_weights_file(tmp_path, tiny_recording, name):
    (tmp_path / "there.safetensors").touch()
    with pytest.raises(ValueError, match="ends in .safetensors|exists already"):
        finetune_encoder(tiny_recording, tmp_path / name)


def test_nothing_to_resume(tmp_path, tiny_recording):
    with pytest.raises(ValueError, match="nothing to resume: no .*sites.npz"):
        finetune_encoder(tiny_recording, tmp_path / "mine.safetensors", resume=True)


def test_too_few_spikes_are_an_error_that_counts_them(tmp_path, tiny_recording_folder):
    recording = load(tiny_recording_folder).time_slice(0.0, 1.0)
    with pytest.raises(ValueError, match=r"too few spikes to fine-tune on: \d+ spikes form 0 clusters"):
        finetune_encoder(recording, tmp_path / "mine.safetensors", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_command_line_errors_are_one_line(tmp_path, tiny_recording_folder, capsys):
    argv = ["train", "--recording", str(tiny_recording_folder), "--out", str(tmp_path / "mine.pt")]
    assert cli.main(argv) == 1
    assert capsys.readouterr().err.startswith("huidurep: the weights go to a file that ends in .safetensors")
    argv[-1] = str(tmp_path / "mine.safetensors")
    for for_training_from_the_start in (["--data", "folder"], ["--change", "train.seed=1"]):
        assert cli.main([*argv, *for_training_from_the_start]) == 1
        assert "leave them out" in capsys.readouterr().err


def test_command_line_from_a_recording_to_weights_that_the_sorter_takes(
    tmp_path, tiny_recording_folder, tiny_config, monkeypatch
):
    """All of it, first pass included."""
    monkeypatch.setattr(recording_module, "MIN_SPIKES", 20)
    out = tmp_path / "mine.safetensors"
    argv = ["train", "--recording", str(tiny_recording_folder), "--out", str(out), "--config", tiny_config]
    assert cli.main([*argv, "--param", "seed=3"]) == 0
    run_sorter("huidurep", load(tiny_recording_folder), folder=tmp_path / "sorted", weights=str(out))
    used = json.loads((tmp_path / "sorted" / "sorter_output" / "parameters_used.json").read_text())
    assert used["weights_version"].startswith("mine-")
