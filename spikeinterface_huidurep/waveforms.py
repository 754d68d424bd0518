"""Cut the waveform of every spike out of the traces, as the encoder wants it."""

import numpy as np
from spikeinterface.core.node_pipeline import PeakRetriever, PipelineNode, run_node_pipeline

from spikeinterface_huidurep.model import MODEL_HZ

MAX_CHANNELS = 12  # channels that describe a spike
N_SAMPLES, N_BEFORE = 64, 24  # of the shipped encoder, at MODEL_HZ
ALIGN_MS = 0.2  # the extremum is looked for this far from the detected sample
N_SHIFTS = 8  # sub-sample positions of the extremum that are told apart
SINC_HALF_WIDTH = 8  # samples to each side that interpolate a value
MAX_PITCH_UM = 200.0  # hardly any spike reaches channels that are farther apart
PITCH_MARGIN = 1.5  # the next channel of a grid is the diagonal one, too


def reach_next_channel(radius_um, locations_um):
    """
    A radius of PITCH_MARGIN times the distance to the next channel, if it was less.

    Large spikes are seen there, and those of neurons in between are now larger on one channel and now on the other.

    Parameters
    ----------
    radius_um : float
    locations_um : np.ndarray, float, shape (n_channels, 2)

    Returns
    -------
    radius_um : float
        As it was, if the next channel is beyond MAX_PITCH_UM: median over the channels.
    """
    distances_um = np.linalg.norm(locations_um[:, None] - locations_um[None], axis=2)
    np.fill_diagonal(distances_um, np.inf)
    pitch_um = float(np.median(distances_um.min(axis=1)))
    return max(radius_um, PITCH_MARGIN * pitch_um) if pitch_um <= MAX_PITCH_UM else radius_um


class Neighborhoods:
    """
    The channels that describe a spike, for every centre channel, nearest first.

    Parameters
    ----------
    locations_um : np.ndarray, float, shape (n_channels, 2)
    radius_um : float

    Attributes
    ----------
    locations_um : np.ndarray, float, shape (n_channels, 2)
    channel_indices : np.ndarray, int64, shape (n_channels, n_neighbors)
        Row c holds the neighbours of channel c, itself first; 0 where there is none.
    channel_mask : np.ndarray, bool, shape (n_channels, n_neighbors)
        False where there is no neighbour.
    positions_um : np.ndarray, float32, shape (n_channels, n_neighbors, 2)
        Relative to the centre channel.
    """

    def __init__(self, locations_um, radius_um):
        self.locations_um = locations_um
        distances = np.linalg.norm(locations_um[:, None] - locations_um[None], axis=2)
        order = np.argsort(distances, axis=1, kind="stable")[:, :MAX_CHANNELS]
        mask = np.take_along_axis(distances, order, axis=1) <= radius_um
        mask = mask[:, : mask.sum(axis=1).max()]
        self.channel_mask = mask
        self.channel_indices = np.where(mask, order[:, : mask.shape[1]], 0)
        positions = locations_um[self.channel_indices] - locations_um[:, None]
        self.positions_um = np.where(mask[:, :, None], positions, 0).astype("float32")

    def find_neighbors(self, channel):
        """Indices of the neighbours of a channel, in ascending order."""
        return np.sort(self.channel_indices[channel][self.channel_mask[channel]])

    def make_sparsity_mask(self):
        """Mask of the neighbours, bool, shape (n_channels, n_channels)."""
        n_channels = len(self.channel_indices)
        mask = np.zeros((n_channels, n_channels), dtype=bool)
        for channel in range(n_channels):
            mask[channel, self.find_neighbors(channel)] = True
        return mask


class ExtractAlignedWaveforms(PipelineNode):
    """
    Waveforms on the neighbouring channels, aligned on the extremum of the centre channel with sub-sample precision and
    resampled to the rate of the encoder.

    Returns float16 waveforms of shape (n_peaks, n_neighbors, n_samples), in units of the traces.
    """

    def __init__(self, recording, parents, neighborhoods, peak_sign, n_samples=N_SAMPLES, n_before=N_BEFORE):
        PipelineNode.__init__(self, recording, return_output=True, parents=parents)
        self.neighborhoods = neighborhoods
        self.peak_sign = peak_sign
        self.n_align = max(1, round(ALIGN_MS * 1e-3 * recording.sampling_frequency))
        self.first, self.matrices = resampling_matrices(recording.sampling_frequency, n_samples, n_before)
        self.n_window = self.matrices.shape[1]

    def get_margin(self):
        return max(-self.first, self.first + self.n_window) + self.n_align + 1

    def compute(self, traces, peaks):
        channels = peaks["channel_index"]
        signs = {"neg": -1, "pos": 1, "both": np.sign(peaks["amplitude"])}[self.peak_sign]
        samples, fractions = refine_peaks(traces, peaks["sample_index"], channels, signs, self.n_align)
        window = samples[:, None] + self.first + np.arange(self.n_window)
        cut = traces[window[:, None, :], self.neighborhoods.channel_indices[channels][:, :, None]]
        cut *= self.neighborhoods.channel_mask[channels][:, :, None]
        shifts = np.round(fractions * N_SHIFTS).astype(int) + N_SHIFTS // 2
        waveforms = np.empty((*cut.shape[:2], self.matrices.shape[2]), dtype="float16")
        for shift in np.unique(shifts):
            waveforms[shifts == shift] = cut[shifts == shift] @ self.matrices[shift]
        return waveforms


def refine_peaks(traces, samples, channels, signs, n_align):
    """
    Move peaks to the extremum of their channel, and say where between the samples it lies.

    Parameters
    ----------
    traces : np.ndarray, float32, shape (n_samples, n_channels)
    samples, channels : np.ndarray, int64, shape (n_peaks,)
    signs : int | np.ndarray, shape (n_peaks,)
        -1 for troughs, 1 for positive peaks.
    n_align : int
        Samples to each side in which the extremum is looked for.

    Returns
    -------
    samples : np.ndarray, int64, shape (n_peaks,)
    fractions : np.ndarray, float32, shape (n_peaks,)
        From -0.5 to 0.5 samples, vertex of the parabola through three samples.
    """
    offsets = np.arange(-n_align, n_align + 1)
    values = np.reshape(signs, (-1, 1)) * traces[samples[:, None] + offsets, channels[:, None]]
    samples = samples + offsets[np.argmax(values, axis=1)]
    before, at, after = (np.abs(traces[samples + k, channels]) for k in (-1, 0, 1))
    curvature = np.maximum(2 * at - before - after, 1e-6)
    return samples, np.clip(0.5 * (after - before) / curvature, -0.5, 0.5)


def resampling_matrices(sampling_frequency, n_samples=N_SAMPLES, n_before=N_BEFORE):
    """
    Windowed-sinc interpolation from the samples of a recording to those of the encoder.

    Parameters
    ----------
    sampling_frequency : float
        Of the recording, in Hz.
    n_samples, n_before : int
        Samples of a waveform of the encoder, and those of them before the peak.

    Returns
    -------
    first : int
        First sample of the window, relative to the peak.
    matrices : np.ndarray, float32, shape (N_SHIFTS + 1, n_window, n_samples)
        Number k is for a peak that lies k / N_SHIFTS - 0.5 samples after its sample.
    """
    step = sampling_frequency / MODEL_HZ
    wanted = (np.arange(n_samples) - n_before) * step
    first = int(np.floor(wanted[0])) - SINC_HALF_WIDTH
    grid = np.arange(first, int(np.ceil(wanted[-1])) + SINC_HALF_WIDTH + 1)
    shifts = np.arange(N_SHIFTS + 1) / N_SHIFTS - 0.5
    distance = wanted[None, None, :] + shifts[:, None, None] - grid[None, :, None]
    window = np.where(np.abs(distance) < SINC_HALF_WIDTH, np.cos(0.5 * np.pi * distance / SINC_HALF_WIDTH) ** 2, 0)
    return first, (np.sinc(distance) * window).astype("float32")


def resample_templates(templates):
    """
    Templates at the rate and in the window of the shipped encoder.

    Parameters
    ----------
    templates : spikeinterface.core.Templates

    Returns
    -------
    waveforms : np.ndarray, float32, shape (n_units, n_channels, N_SAMPLES)
    """
    dense = templates.get_dense_templates().transpose(0, 2, 1)  # (u, c, t)
    first, matrices = resampling_matrices(templates.sampling_frequency)
    n_window = matrices.shape[1]
    pad_before = max(0, -first - templates.nbefore)
    pad_after = max(0, first + n_window - templates.nafter)
    padded = np.pad(dense, ((0, 0), (0, 0), (pad_before, pad_after)))
    start = templates.nbefore + pad_before + first
    return padded[:, :, start : start + n_window].astype("float32") @ matrices[N_SHIFTS // 2]


def extract_waveforms(
    traces, peaks, neighborhoods, peak_sign, folder, job_kwargs, *, n_samples=N_SAMPLES, n_before=N_BEFORE
):
    """
    Extract the aligned waveforms of peaks into a file.

    Parameters
    ----------
    traces : BaseRecording
        In multiples of the noise SD.
    peaks : np.ndarray, structured, shape (n_peaks,)
    neighborhoods : Neighborhoods
    peak_sign : "neg" | "pos" | "both"
        Extremum to align on.
    folder : Path
        Of the file that holds the waveforms; removed by the caller.
    job_kwargs : dict
    n_samples, n_before : int
        Samples of a waveform at MODEL_HZ, and those of them before the peak.

    Returns
    -------
    waveforms : np.ndarray, float16, shape (n_peaks, n_neighbors, n_samples)
        Memory-mapped. Channels nearest first; 0 where there is no neighbour.
    """
    retriever = PeakRetriever(traces, peaks)
    node = ExtractAlignedWaveforms(traces, [retriever], neighborhoods, peak_sign, n_samples, n_before)
    return run_into_file(traces, [retriever, node], "waveforms", folder, job_kwargs)


def run_into_file(recording, nodes, name, folder, job_kwargs):
    """
    What the last of the nodes extracts, memory-mapped.

    Parameters
    ----------
    recording : BaseRecording
    nodes : list of PipelineNode
        Only the last returns its output.
    name : str
        Of the file, and in the progress bar.
    folder : Path
        Of the file; removed by the caller.
    job_kwargs : dict

    Returns
    -------
    output : np.ndarray
        Memory-mapped, one row a peak.
    """
    return run_node_pipeline(
        recording,
        nodes,
        job_kwargs,
        job_name=f"extract {name}",
        gather_mode="npy",
        dest=folder,
        names=[name],
        squeeze_output=True,
    )
