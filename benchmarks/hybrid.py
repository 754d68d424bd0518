"""
Hybrid recordings: mean waveforms of real neurons, at known times, in noise with the spectrum of real recordings.

They are made of public data in one folder, which is not part of this project:

- `brody_np1_templates/brody_np1_templates_61.npz`: mean waveforms of chronic Neuropixels 1.0 recordings, 14 channels
  around the largest, 61 samples at 30 kHz, in microvolt (Brody-Lab/chronic_neuropixels, Apache-2.0);
- `ibl_noise/spatial_cov.npy`, `ibl_noise/temporal_cov.npy`: covariance of Neuropixels 1.0 noise over 384 channels and
  over 121 samples at 30 kHz (ankitvishnu23/CEED, MIT).
"""

from pathlib import Path

import numpy as np
import scipy.signal
import spikeinterface.full as si
from probes import make_neuropixels_probe

from spikeinterface_huidurep.redundancy import shift_samples

SAMPLING_FREQUENCY_HZ = 30000.0
N_CHANNELS = 64
N_UNITS = 30
N_BEFORE = 15  # sample of the extremum in the file of waveforms, but for a few that lie beside it
MAX_OFFSET = 6  # samples; 0.2 ms
NOISE_UV = 10.0
AMPLITUDE_RANGE_UV = (40.0, 400.0)
FIRING_RATES_HZ = (1.0, 10.0)
REFRACTORY_MS = 3.0
AMPLITUDE_SD = 0.05
BURST_DECAY, SMALLEST = 0.8, 0.4  # of the size of spikes, from one to the next in a burst, and of the last ones
TAPER = 0.2  # share of the window over which a cut-out waveform goes to 0


def make_hybrid(data_folder, duration_s, seed=0):
    """
    Inject real mean waveforms into real-spectrum noise with SpikeInterface's hybrid generator.

    Parameters
    ----------
    data_folder : str | Path
        See the module.
    duration_s : float
    seed : int, default: 0
        Of the choice of neurons, their places, spike trains and noise.

    Returns
    -------
    recording : BaseRecording
        64 sites of a Neuropixels 1.0 probe, microvolt.
    sorting : BaseSorting
    """
    noise, templates = make_parts(data_folder, duration_s, seed, np.random.default_rng(seed))
    return si.generate_hybrid_recording(
        noise,
        templates=templates,
        generate_sorting_kwargs=dict(
            num_units=N_UNITS, firing_rates=FIRING_RATES_HZ, refractory_period_ms=REFRACTORY_MS
        ),
        seed=seed,
    )


def make_hybrid_bursts(data_folder, duration_s, seed=0):
    """As `make_hybrid`, but every second neuron fires in bursts, in which each spike is smaller than the one before."""
    rng = np.random.default_rng(seed)
    noise, templates = make_parts(data_folder, duration_s, seed, rng)
    trains = [fire(rng.uniform(*FIRING_RATES_HZ), 1 + unit % 2, duration_s, rng) for unit in range(N_UNITS)]
    samples, sizes = (np.concatenate(values) for values in zip(*trains, strict=True))
    units = np.repeat(np.arange(N_UNITS), [len(times) for times, _ in trains])
    order = np.lexsort((units, samples))
    sorting = si.NumpySorting.from_samples_and_labels([samples[order]], [units[order]], SAMPLING_FREQUENCY_HZ)
    sizes = sizes[order] + AMPLITUDE_SD * rng.standard_normal(len(sizes))
    return si.generate_hybrid_recording(
        noise, sorting=sorting, templates=templates, amplitude_factor=sizes.astype("float32"), seed=seed
    )


def make_parts(data_folder, duration_s, seed, rng):
    """Noise, and templates of neurons to put into it; the choice of neurons and places is that of `rng`."""
    noise = make_noise(Path(data_folder) / "ibl_noise", duration_s, seed)
    return noise, place_templates(Path(data_folder) / "brody_np1_templates" / "brody_np1_templates_61.npz", rng)


def fire(rate_hz, mean_in_burst, duration_s, rng):
    """
    Spikes of a neuron that fires in bursts.

    Parameters
    ----------
    rate_hz : float
        Of all spikes.
    mean_in_burst : float
        Mean number of spikes of a burst; 1 for a neuron that fires them one by one.
    duration_s : float
    rng : np.random.Generator

    Returns
    -------
    samples : np.ndarray, int64, shape (n_spikes,)
    sizes : np.ndarray, float64, shape (n_spikes,)
        In multiples of the mean waveform.
    """
    n_bursts = int(2 * rate_hz * duration_s)  # more than can be in this time
    counts = rng.geometric(1 / mean_in_burst, n_bursts)
    places = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    refractory_s = REFRACTORY_MS / 1000
    intervals_s = refractory_s + rng.gamma(3.0, 1e-3, len(places))
    intervals_s[places == 0] = 2 * refractory_s + rng.exponential(mean_in_burst / rate_hz, n_bursts)
    times_s = np.cumsum(intervals_s)
    is_inside = times_s < duration_s - 0.01
    sizes = np.maximum(BURST_DECAY**places, SMALLEST)
    return (times_s[is_inside] * SAMPLING_FREQUENCY_HZ).astype("int64"), sizes[is_inside]


def make_noise(folder, duration_s, seed):
    """Gaussian noise of 10 uV with the correlations in space and in time of real recordings."""
    covariance = np.load(folder / "spatial_cov.npy")[:N_CHANNELS, :N_CHANNELS]
    deviations = np.sqrt(np.diag(covariance))
    noise = si.noise_generator_recording(
        num_channels=N_CHANNELS,
        sampling_frequency=SAMPLING_FREQUENCY_HZ,
        durations=[duration_s],
        cov_matrix=NOISE_UV**2 * covariance / np.outer(deviations, deviations),
        seed=seed,
        strategy="on_the_fly",
    )
    noise.set_probe(make_neuropixels_probe(N_CHANNELS))
    coefficients = design_colouring_filter(np.load(folder / "temporal_cov.npy"))
    margin_ms = 1000.0 * len(coefficients) / SAMPLING_FREQUENCY_HZ
    coeff = (coefficients, np.ones(1))
    return si.filter(noise, coeff=coeff, filter_mode="ba", direction="forward", margin_ms=margin_ms)


def design_colouring_filter(covariance):
    """
    Filter that gives white noise a measured covariance in time, and keeps its variance.

    Parameters
    ----------
    covariance : np.ndarray, float64, shape (n_lags, n_lags)

    Returns
    -------
    coefficients : np.ndarray, float64, shape (2 * n_used_lags - 1,)
        Symmetric; their squares sum to 1.
    """
    n_used = len(covariance) // 2
    lags = np.array([np.diag(covariance, lag).mean() for lag in range(n_used)])
    lags *= scipy.signal.windows.hann(2 * n_used)[n_used:]
    power = np.fft.rfft(np.concatenate([lags, lags[:0:-1]])).real
    response = np.fft.irfft(np.sqrt(np.clip(power, 0, None)), n=2 * n_used - 1)
    coefficients = np.fft.fftshift(response)
    return coefficients / np.linalg.norm(coefficients)


def place_templates(file_path, rng):
    """
    Choose single units of the file and put each at a site of the same column as where it was recorded.

    Parameters
    ----------
    file_path : Path
    rng : np.random.Generator

    Returns
    -------
    templates : spikeinterface.core.Templates
        Dense, in microvolt, 0 on the sites where the unit was not measured.
    """
    with np.load(file_path) as data:
        waveforms, peak_channel = data["templates"], data["peak_channel"]
        true_site = (data["electrode"].astype(int) - 1) % 384
        amplitude = np.ptp(waveforms, axis=2).max(axis=1)
        low, high = AMPLITUDE_RANGE_UV
        usable = np.flatnonzero(data["is_single"] & (amplitude >= low) & (amplitude <= high))
        chosen = rng.choice(usable, size=N_UNITS, replace=False)
    n_local, n_samples = waveforms.shape[1:]
    taper = scipy.signal.windows.tukey(n_samples, TAPER)
    array = np.zeros((N_UNITS, n_samples, N_CHANNELS), dtype="float32")
    for index, unit in enumerate(chosen):
        first = int(rng.integers(0, N_CHANNELS - n_local))
        first += (true_site[unit] - peak_channel[unit] - first) % 4  # the four columns of sites repeat
        first -= 4 * (first + n_local > N_CHANNELS)
        array[index, :, first : first + n_local] = centre_waveform(waveforms[unit].T * taper[:, None])
    return si.Templates(
        templates_array=array,
        sampling_frequency=SAMPLING_FREQUENCY_HZ,
        nbefore=N_BEFORE,
        probe=make_neuropixels_probe(N_CHANNELS),
        is_in_uV=True,
    )


def centre_waveform(waveform):
    """The waveform (n_samples, n_channels), moved so that its largest extremum is at N_BEFORE if it is far from it."""
    offset = int(np.abs(waveform).max(axis=1).argmax()) - N_BEFORE
    return shift_samples(waveform, -offset) if abs(offset) > MAX_OFFSET else waveform
