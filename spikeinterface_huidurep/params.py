"""
The parameter table. Each field of `SorterParams` is one row: default, unit, what is allowed, one description.

Everything else about parameters is made from it: SpikeInterface's defaults and descriptions, the checks, and
`docs/parameters.md` (`python -m spikeinterface_huidurep.params > docs/parameters.md`).
"""

import dataclasses
import numbers
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAX_FREQ_FRACTION = 0.45  # of the sampling rate: leaves the band-pass filter a transition band below Nyquist
MIN_SAMPLING_FREQUENCY_HZ = 10_000.0
MAX_SAMPLING_FREQUENCY_HZ = 40_000.0


# The kinds of rows. `convert` returns the plain Python value, or raises TypeError or ValueError.


def _row(default, wanted, convert, unit, text):
    metadata = {"wanted": wanted, "convert": convert, "unit": unit, "description": text}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _flag(default, text):
    def convert(value):
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError
        return bool(value)

    return _row(default, "True or False", convert, "", text)


def _auto_or_flag(text):
    def convert(value):
        if isinstance(value, (bool, np.bool_)):
            return bool(value)
        if not isinstance(value, str) or value != "auto":
            raise ValueError
        return value

    return _row("auto", "'auto', True or False", convert, "", text)


def _number(default, low, high, unit, text):
    def convert(value):
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not low <= value <= high:
            raise ValueError
        return float(value)

    return _row(default, f"a number from {low:g} to {high:g}", convert, unit, text)


def _integer(default, low, high, unit, text):
    def convert(value):
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not low <= value <= high:
            raise ValueError
        if value != int(value):
            raise ValueError
        return int(value)

    return _row(default, f"an integer from {low} to {high}", convert, unit, text)


def _choice(default, choices, text):
    def convert(value):
        if value not in choices:
            raise ValueError
        return value

    return _row(default, "one of " + ", ".join(repr(choice) for choice in choices), convert, "", text)


def _device(default, text):
    def convert(value):
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
            raise ValueError
        return value

    return _row(default, "'auto', 'cpu', 'cuda', 'cuda:<number>' or 'mps'", convert, "", text)


def _optional_path(default, text):
    def convert(value):
        if value is None:
            return None
        if not isinstance(value, (str, Path)):
            raise TypeError
        if not Path(value).is_file():
            raise ValueError
        return str(Path(value).absolute())  # the job may run in another working directory

    return _row(default, "None or the path of a file that exists", convert, "", text)


def _job_kwargs(default, text):
    def convert(value):
        from spikeinterface.core.job_tools import job_keys

        value = dict(value)
        if not set(value) <= set(job_keys):
            raise ValueError
        return value

    return _row(
        default, "a dictionary of SpikeInterface job arguments (n_jobs, chunk_duration, ...)", convert, "", text
    )


@dataclass(frozen=True)
class SorterParams:
    """
    Parameters of the sorter, checked. Made by `SorterParams.from_dict`; the fields are the parameter table.

    The constructor itself does not check: `SorterParams()` are the defaults.
    """

    apply_preprocessing: bool = _flag(
        True,
        "Filter, reference and whiten the traces here. Set it to False when the recording is band-pass filtered and "
        "whitened (unit noise on every channel) already.",
    )
    apply_motion_correction: bool | str = _auto_or_flag(
        "Estimate the drift of the probe and interpolate the traces back; 'auto' does so from 16 channels on, where "
        "there is drift. Set it to True or False when the log shows that this was decided wrongly; needs "
        "apply_preprocessing.",
    )
    motion_correction_preset: str = _choice(
        "dredge_fast",
        ("dredge_fast", "dredge", "nonrigid_fast_and_accurate", "nonrigid_accurate", "rigid_fast", "kilosort_like"),
        "SpikeInterface's preset for the motion correction. Change it when the corrected drift is visibly wrong.",
    )
    freq_min: float = _number(
        150.0,
        100.0,
        2000.0,
        "Hz",
        "Lower edge of the band-pass filter. Raise it when slow field potentials are detected.",
    )
    freq_max: float = _number(
        7000.0,
        1000.0,
        18000.0,
        "Hz",
        "Upper edge of the band-pass filter, limited to 0.45 of the sampling rate. Raise it for very narrow spikes "
        "sampled above 30 kHz; lower it when high-frequency noise is detected.",
    )
    temporal_whitening: bool = _flag(
        True,
        "Flatten the noise spectrum inside the band of the spikes. Set it to False when the noise is white in time "
        "already or for traces whitened elsewhere.",
    )
    whitening_radius_um: float = _number(
        100.0,
        0.0,
        1000.0,
        "um",
        "Channels within this distance are whitened together. Raise it when noise is shared over longer distances; "
        "lower it to make whitening of dense probes faster.",
    )
    peak_sign: str = _choice(
        "both",
        ("neg", "pos", "both"),
        "Sign of the peaks to detect. Use 'neg' when units with a dominant positive peak are not wanted.",
    )
    detect_threshold: float = _number(
        5.0,
        1.0,
        50.0,
        "noise SD",
        "Detection threshold. Raise it when noise is sorted into units, lower it when weak units are missed.",
    )
    detection_radius_um: float = _number(
        50.0,
        0.0,
        500.0,
        "um",
        "Within this distance only the largest of simultaneous peaks is detected. Raise it when one spike is detected "
        "on several channels, lower it when neighbours that fire together are lost. This and the other radii "
        "are at least 1.5 times the distance to the next channel, if that is up to 200 um.",
    )
    n_peaks_per_channel: int = _integer(
        5000,
        100,
        1_000_000,
        "",
        "Peaks per channel used to find the units. Raise it when rare units of a long recording are missed; memory "
        "and time of the clustering grow with it.",
    )
    neighborhood_radius_um: float = _number(
        120.0,
        10.0,
        500.0,
        "um",
        "Channels within this distance of the largest one (at most 12) describe a spike. Raise it on sparse probes.",
    )
    features: str = _choice(
        "embedding",
        ("embedding", "pca"),
        "What is clustered: the vectors of the encoder, or principal components (for comparison only).",
    )
    weights: str | None = _optional_path(
        None,
        "Encoder weights to use instead of those shipped with the package: a safetensors file of the training script, "
        "or the HuiduRep.pt of the paper's authors (far slower).",
    )
    assignment: str = _choice(
        "matching",
        ("matching", "gmm"),
        "How spikes get their unit: by matching the templates found, which resolves collisions, or by the mixture "
        "alone, which is faster.",
    )
    max_components_per_channel: int = _integer(
        12,
        1,
        100,
        "",
        "Largest number of mixture components on one channel. Raise it when more than about ten units share a channel.",
    )
    merge_threshold: float = _number(
        2.5,
        0.0,
        100.0,
        "",
        "Clusters are merged when the dip score of the gap between them is lower; 0 merges none. Raise it when units "
        "are split, lower it when different units are merged.",
    )
    ms_before: float = _number(
        2.0, 0.3, 5.0, "ms", "Part of the template before the trough. Raise it for spikes with a slow onset."
    )
    ms_after: float = _number(
        3.0, 0.5, 10.0, "ms", "Part of the template after the trough. Raise it for spikes with a long repolarisation."
    )
    min_firing_rate: float = _number(
        0.02,
        0.0,
        100.0,
        "Hz",
        "Units that fire less are dropped. Raise it when there are many tiny clusters, lower it for silent units.",
    )
    min_snr: float = _number(
        2.0,
        0.0,
        100.0,
        "noise SD",
        "Units whose template has a smaller peak-to-peak amplitude are dropped. Raise it when noise makes units.",
    )
    torch_device: str = _device(
        "auto",
        "Where the encoder runs; 'auto' takes CUDA if there is one, otherwise the CPU. Set it to 'cpu' when several "
        "sortings share one GPU.",
    )
    batch_size: int = _integer(
        256,
        1,
        1_000_000,
        "spikes",
        "Spikes in one pass of the encoder; does not change the result. Lower it when the GPU runs out of memory.",
    )
    cache_preprocessing_mode: str = _choice(
        "auto",
        ("auto", "memory", "folder", "no-cache"),
        "Where the preprocessed traces are kept: in memory, in sorter_output, or nowhere; 'auto' takes memory if they "
        "fit. Set it to 'folder' when the memory is needed elsewhere.",
    )
    save_embeddings: bool = _flag(
        True, "Keep the vector of each clustered spike in sorter_output. Set it to False to save disk space."
    )
    seed: int = _integer(
        0,
        0,
        2**32 - 1,
        "",
        "Seed of every random choice; the same seed gives the same sorting on the same machine. Change it to see how "
        "much a result depends on chance.",
    )
    job_kwargs: dict = _job_kwargs(
        {},
        "How SpikeInterface spreads the work over processes and chunks. Set {'n_jobs': ...} to use more cores.",
    )

    @classmethod
    def from_dict(cls, values):
        """
        Check parameters and convert them to plain Python values.

        Parameters
        ----------
        values : dict
            Parameter names and values, also as read back from JSON. Parameters that are left out keep their default.

        Returns
        -------
        params : SorterParams

        Raises
        ------
        ValueError
            If a name is unknown or a value is not allowed: says the name, the value and what is wanted.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields))
        if unknown:
            raise ValueError(f"unknown parameters {unknown}; the parameters are {list(fields)}")
        params = cls(**{name: _convert(fields[name], value) for name, value in values.items()})
        if params.freq_min >= params.freq_max:
            raise ValueError(f"freq_min={params.freq_min} Hz must be below freq_max={params.freq_max} Hz")
        if params.apply_motion_correction is True and not params.apply_preprocessing:
            raise ValueError("apply_motion_correction=True needs apply_preprocessing=True")
        return params

    def to_dict(self):
        """Return the parameters as a new dictionary of plain Python values."""
        return dataclasses.asdict(self)

    def check_valid(self, recording):
        """
        Check the parameters that depend on the recording.

        Parameters
        ----------
        recording : BaseRecording

        Raises
        ------
        ValueError
            If the sampling rate is outside the supported range or leaves nothing of the filter's pass band.
        """
        sampling_frequency = recording.sampling_frequency
        if not MIN_SAMPLING_FREQUENCY_HZ <= sampling_frequency <= MAX_SAMPLING_FREQUENCY_HZ:
            raise ValueError(
                f"the sampling rate is {sampling_frequency:g} Hz; huidurep sorts recordings from "
                f"{MIN_SAMPLING_FREQUENCY_HZ:g} to {MAX_SAMPLING_FREQUENCY_HZ:g} Hz (use spikeinterface.preprocessing."
                "resample to change it)"
            )
        highest_frequency = MAX_FREQ_FRACTION * sampling_frequency
        if self.freq_min >= highest_frequency:
            raise ValueError(
                f"freq_min={self.freq_min} Hz must be below {highest_frequency:g} Hz, which is {MAX_FREQ_FRACTION} of "
                "the sampling rate"
            )

    def limit_freq_max(self, sampling_frequency):
        """Return the upper edge of the band-pass filter in Hz: `freq_max` or 0.45 of the sampling rate."""
        return min(self.freq_max, MAX_FREQ_FRACTION * sampling_frequency)


def _convert(field, value):
    try:
        return field.metadata["convert"](value)
    except (TypeError, ValueError):
        raise ValueError(
            f"parameter {field.name}={value!r} is not allowed; wanted {field.metadata['wanted']}"
        ) from None


def get_default_params():
    """Return SpikeInterface's `_default_params`: name -> default."""
    return SorterParams().to_dict()


def get_params_description():
    """Return SpikeInterface's `_params_description`: name -> description with unit and what is allowed."""
    return {field.name: _describe(field) for field in dataclasses.fields(SorterParams)}


def _describe(field):
    unit = f" [{field.metadata['unit']}]" if field.metadata["unit"] else ""
    return f"{field.metadata['description']}{unit} Wanted: {field.metadata['wanted']}."


def make_params_table():
    """Return the text of `docs/parameters.md`."""
    lines = [
        "# Parameters",
        "",
        "Made from `spikeinterface_huidurep/params.py` by `python -m spikeinterface_huidurep.params > "
        "docs/parameters.md`; do not edit by hand.",
        "",
        "| parameter | default | unit | allowed | what it does |",
        "|---|---|---|---|---|",
    ]
    defaults = get_default_params()
    for field in dataclasses.fields(SorterParams):
        unit, wanted, text = (field.metadata[key] for key in ("unit", "wanted", "description"))
        lines.append(f"| `{field.name}` | `{defaults[field.name]!r}` | {unit} | {wanted} | {text} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(make_params_table())
