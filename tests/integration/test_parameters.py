"""The parameters that change the way of the data."""

import hashlib
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from spikeinterface.preprocessing import bandpass_filter, whiten
from spikeinterface.sorters.utils import SpikeSortingError

import spikeinterface_huidurep
from spikeinterface_huidurep.waveforms import ExtractAlignedWaveforms, Neighborhoods

from ..unit.test_paper_encoder import make_authors_state
from .conftest import compute_accuracies, make_ground_truth, replace_traces


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"no_such_parameter": 1}, "no_such_parameter"),
        ({"detect_threshold": 0}, "detect_threshold=0 is not allowed; wanted a number from 1 to 50"),
        ({"features": "umap"}, "features='umap' is not allowed; wanted one of 'embedding', 'pca'"),
        ({"freq_min": 2000, "freq_max": 1500}, "freq_min=2000.0 Hz must be below freq_max=1500.0 Hz"),
        ({"weights": "no_such_file.safetensors"}, "weights='no_such_file.safetensors' is not allowed"),
    ],
)
def test_wrong_parameters_are_refused(sort, tetrode, params, message):
    with pytest.raises((ValueError, AttributeError), match=message):
        sort(tetrode[0], **params)


def test_filtered_recording_is_sorted_with_a_warning(sort, tmp_path, tetrode):
    filtered = bandpass_filter(tetrode[0], freq_min=300.0, freq_max=6000.0)
    sorting = sort(filtered)
    assert np.sum(compute_accuracies(tetrode[1], sorting) >= 0.8) >= 3
    log = (tmp_path / "out0/sorter_output/huidurep.log").read_text()
    assert "WARNING the recording is marked as filtered; it is band-pass filtered again" in log


def test_recording_whitened_elsewhere(sort, tetrode):
    whitened = whiten(bandpass_filter(tetrode[0], freq_min=150.0, freq_max=7000.0), seed=0)
    sorting = sort(whitened, apply_preprocessing=False)
    assert np.sum(compute_accuracies(tetrode[1], sorting) >= 0.8) >= 3


@pytest.mark.parametrize("durations", [(10.0,), (4.0, 6.0)])
def test_motion_correction(sort, tmp_path, durations):
    recording, sorting_true = make_ground_truth(tmp_path / "recording", 16, 6, durations)
    sorting = sort(recording, apply_motion_correction=True)
    assert sorting.get_num_segments() == len(durations)
    assert np.sum(compute_accuracies(sorting_true, sorting) >= 0.8) >= 5
    assert (tmp_path / "out0/sorter_output/motion").is_dir()


def test_motion_that_cannot_be_estimated(sort, tmp_path):
    recording, _ = make_ground_truth(tmp_path / "recording", 16, 6)
    with pytest.raises(SpikeSortingError, match="motion_correction_preset='kilosort_like'.*try another preset"):
        sort(recording, apply_motion_correction=True, motion_correction_preset="kilosort_like")


@pytest.mark.parametrize("mode", ["folder", "no-cache"])
def test_place_of_the_cache_does_not_matter(sort, tmp_path, tetrode, tetrode_sorting, mode):
    sorting = sort(tetrode[0], cache_preprocessing_mode=mode)
    assert sorting.get_num_units() == tetrode_sorting.get_num_units()
    assert compute_accuracies(tetrode_sorting, sorting).min() > 0.99
    assert not (tmp_path / "out0/sorter_output/cache_preprocessing").exists()


@pytest.mark.parametrize(("params", "accuracy"), [({"features": "pca"}, 0.8), ({"assignment": "gmm"}, 0.65)])
def test_other_algorithms(sort, tmp_path, tetrode, params, accuracy):
    sorting = sort(tetrode[0], **params)
    assert np.sum(compute_accuracies(tetrode[1], sorting) >= accuracy) >= 3
    posteriors = np.load(tmp_path / "out0/sorter_output/spike_posteriors.npy")
    assert posteriors.shape == sorting.to_spike_vector().shape


@pytest.mark.parametrize(("peak_sign", "sign"), [("pos", -1), ("both", -1)])
def test_peak_sign(sort, tetrode, peak_sign, sign):
    sorting = sort(replace_traces(tetrode[0], [np.float32(sign) * tetrode[0].get_traces()]), peak_sign=peak_sign)
    assert np.sum(compute_accuracies(tetrode[1], sorting) >= 0.8) >= 3


def test_weights_file(sort, tmp_path, tetrode, tetrode_sorting):
    shipped = next((Path(spikeinterface_huidurep.__file__).parent / "model/weights").glob("*.safetensors"))
    copy = tmp_path / "other.safetensors"
    shutil.copy(shipped, copy)
    np.testing.assert_array_equal(
        sort(tetrode[0], weights=str(copy)).to_spike_vector(), tetrode_sorting.to_spike_vector()
    )
    used = (tmp_path / "out0/sorter_output/parameters_used.json").read_text()
    assert hashlib.sha256(copy.read_bytes()).hexdigest()[:8] in used
    copy.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="other.safetensors is not a complete safetensors file"):
        sort(tetrode[0], weights=str(copy))
    assert not (tmp_path / "out1/sorter_output/huidurep.log").exists()  # before anything is done


def test_file_of_the_authors(sort, tmp_path, tetrode):
    """The whole way with a network in the paper's layout: other window, other channels. Its weights are random."""
    path = tmp_path / "HuiduRep.pt"
    torch.save(make_authors_state(num_layers=2), path)
    sorting = sort(tetrode[0], weights=str(path))
    folder = tmp_path / "out0/sorter_output"
    embeddings, peaks = (np.load(folder / f"clustered_{name}.npy") for name in ("embeddings", "peaks"))
    assert embeddings.shape == (len(peaks), 32) and np.isfinite(embeddings).all()
    assert np.sum(compute_accuracies(tetrode[1], sorting) >= 0.8) >= 3
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:8] in (folder / "parameters_used.json").read_text()


def test_number_of_jobs_does_not_matter(sort, tetrode, tetrode_sorting):
    sorting = sort(tetrode[0], job_kwargs={"n_jobs": 2})
    np.testing.assert_array_equal(sorting.to_spike_vector(), tetrode_sorting.to_spike_vector())


@pytest.mark.slow
def test_spawned_workers(sort, tetrode, tetrode_sorting):
    sorting = sort(tetrode[0], job_kwargs={"n_jobs": 2, "mp_context": "spawn"})
    np.testing.assert_array_equal(sorting.to_spike_vector(), tetrode_sorting.to_spike_vector())


def test_nodes_can_be_sent_to_workers(tetrode):
    neighborhoods = Neighborhoods(tetrode[0].get_channel_locations(), 100.0)
    node = pickle.loads(pickle.dumps(ExtractAlignedWaveforms(tetrode[0], [], neighborhoods, "neg")))
    assert node.get_margin() > 0


def test_seed_changes_little(sort, tetrode, tetrode_sorting):
    sorting = sort(tetrode[0], seed=1)
    assert compute_accuracies(tetrode_sorting, sorting).min() > 0.95
