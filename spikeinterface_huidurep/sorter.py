"""HuiduRepSorter: glue between SpikeInterface's folder contract and `pipeline.sort_recording`."""

import importlib.metadata
import importlib.util
import json
import logging
from contextlib import contextmanager

import numpy as np
from spikeinterface.core import NumpySorting, load
from spikeinterface.core.numpyextractors import SpikeVectorSortingSegment
from spikeinterface.sorters.basesorter import BaseSorter

import spikeinterface_huidurep
from spikeinterface_huidurep import _startup
from spikeinterface_huidurep.checks import attach_default_probe, check_recording
from spikeinterface_huidurep.model.weights import load_encoder, weights_version
from spikeinterface_huidurep.params import SorterParams, get_default_params, get_params_description

REQUIRED_MODULES = ("torch", "safetensors", "scipy", "sklearn", "numba", "psutil", "networkx", "pandas", "tqdm")

logger = logging.getLogger("spikeinterface_huidurep")


class HuiduRepSorter(BaseSorter):
    """
    Spike sorter with contrastive spike embeddings.

    All is class method, no instance: the state is in the folder. The algorithm is in `pipeline.py`.
    """

    sorter_name = "huidurep"
    gpu_capability = "nvidia-optional"
    handle_multi_segment = True
    requires_locations = False  # `check_recording` asks for them, with exceptions and clearer errors
    compatible_with_parallel = {"loky": True, "multiprocessing": True, "threading": False}

    sorter_description = """HuiduRep turns every spike into a vector with a small transformer that was trained without
    labels (contrast of augmented views plus denoising), clusters the vectors of each channel with Gaussian mixtures,
    and finishes with template matching. It needs no number of units and no GPU.
    Based on the idea of Cao, Feng, Zhang and Shi (2025), https://arxiv.org/abs/2507.17224; own implementation."""

    installation_mesg = "\tpip install spikeinterface_huidurep\n"

    @classmethod
    def _dynamic_params(cls):
        return get_default_params(), get_params_description()

    @classmethod
    def is_installed(cls):
        return all(importlib.util.find_spec(name) is not None for name in REQUIRED_MODULES)

    @classmethod
    def get_sorter_version(cls):
        return f"{spikeinterface_huidurep.__version__}+{weights_version()}"

    @classmethod
    def use_gpu(cls, params):
        return params["torch_device"] != "cpu"

    @classmethod
    def _check_params(cls, recording, output_folder, params):
        checked_params = SorterParams.from_dict(params)
        check_recording(recording)
        checked_params.check_valid(recording)
        if checked_params.weights is not None:
            load_encoder(checked_params.weights)  # a file that is none fails here, not after minutes of work
        return checked_params.to_dict()

    @classmethod
    def _check_apply_filter_in_params(cls, params):
        return params["apply_preprocessing"]

    @classmethod
    def _setup_recording(cls, recording, sorter_output_folder, params, verbose):
        pass  # the recording is read where it is, never copied

    @classmethod
    def _run_from_folder(cls, sorter_output_folder, params, verbose):
        from spikeinterface_huidurep.embedding import resolve_torch_device
        from spikeinterface_huidurep.pipeline import sort_recording

        params = SorterParams.from_dict(params)
        if params.features != "pca":
            resolve_torch_device(params.torch_device)  # without such a device it fails here, not after minutes of work
        with log_to_file(sorter_output_folder / "huidurep.log", verbose):
            logger.info("huidurep %s", cls.get_sorter_version())
            _write_parameters_used(sorter_output_folder / "parameters_used.json", params, cls.get_sorter_version())
            recording = cls.load_recording_from_folder(sorter_output_folder.parent)
            recording = attach_default_probe(recording)
            sorting = sort_recording(recording, params, sorter_output_folder, verbose)
            add_silent_segments(sorting, recording.get_num_segments())
            sorting.save(folder=sorter_output_folder / "sorting")

    @classmethod
    def _get_result_from_folder(cls, sorter_output_folder):
        sorting = load(sorter_output_folder / "sorting")
        if sorting.get_num_units() == 0:  # numpy makes float ids of an empty list; SpikeInterface's comparisons refuse
            empty = NumpySorting(sorting.to_spike_vector(), sorting.sampling_frequency, np.array([], dtype="int64"))
            add_silent_segments(empty, sorting.get_num_segments())
            return empty
        return sorting


def add_silent_segments(sorting, num_segments):
    """
    Give a sorting all segments of its recording: `NumpySorting` counts them up to the last spike only.

    Parameters
    ----------
    sorting : NumpySorting
        Changed in place.
    num_segments : int
        Of the recording.
    """
    spikes = sorting.to_spike_vector()
    for segment_index in range(sorting.get_num_segments(), num_segments):
        sorting.add_sorting_segment(SpikeVectorSortingSegment(spikes, segment_index, sorting.unit_ids))


@contextmanager
def log_to_file(file_path, verbose):
    """
    Write what the package logs to a file, and to the console if `verbose`, until the block ends.

    Parameters
    ----------
    file_path : Path
    verbose : bool
    """
    handlers = [logging.FileHandler(file_path, encoding="utf8")]
    if verbose:
        handlers.append(logging.StreamHandler())
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    level_before = logger.level
    logger.setLevel(logging.INFO)
    for handler in handlers:
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    try:
        yield
    except Exception:
        logger.exception("sorting failed")
        raise
    finally:
        logger.setLevel(level_before)
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()  # an open file cannot be deleted on Windows


def _write_parameters_used(file_path, params, sorter_version):
    versions = {name: importlib.metadata.version(name) for name in ("spikeinterface", "torch", "numpy", "scikit-learn")}
    used = {
        "sorter_version": sorter_version,
        "weights_version": weights_version(params.weights),
        "versions": versions,
        "parameters": params.to_dict(),
    }
    file_path.write_text(json.dumps(used, indent=4), encoding="utf8")


_startup.install()  # where this module is what imports SpikeInterface, the hook fires before the class above exists
