"""
Recordings simulated by MEArec from its 13 cell models of cortical layer 5.

The templates are simulated once for each probe and kept. That needs the packages `neuron` and `LFPy` (extra
`benchmark`) and a C compiler. The cell models are under CC BY-NC-SA 4.0: for evaluation only.
"""

import os
import sys
from pathlib import Path

import spikeinterface.full as si

N_TEMPLATES_PER_MODEL = 10
TEMPLATES_SEED = 0  # of the neurons that every recording chooses from
NOISE_UV = 10.0
MIN_AMPLITUDE_UV = 30.0


def make_mearec(probe_name, n_excitatory, n_inhibitory, cache_folder, duration_s, seed=0):
    """
    Simulate a recording, with the templates of the cache if they are there.

    Parameters
    ----------
    probe_name : str
        One of `MEAutility.return_mea_list()`.
    n_excitatory, n_inhibitory : int
        Numbers of neurons.
    cache_folder : Path
        Keeps the templates and the recording.
    duration_s : float
    seed : int, default: 0
        Of the choice of neurons, their spike trains and noise.

    Returns
    -------
    recording : BaseRecording
        Unfiltered, microvolt.
    sorting : BaseSorting
    """
    import MEArec

    cache_folder.mkdir(parents=True, exist_ok=True)
    templates_path = cache_folder / f"templates_{probe_name}.h5"
    if not templates_path.exists():
        simulate_templates(probe_name, templates_path)
    params = MEArec.get_default_recordings_params()
    params["spiketrains"] |= dict(n_exc=n_excitatory, n_inh=n_inhibitory, duration=duration_s)
    params["seeds"] = dict.fromkeys(params["seeds"], seed)
    params["templates"] |= dict(min_amp=MIN_AMPLITUDE_UV, min_dist=15)
    params["recordings"] |= dict(
        noise_level=NOISE_UV, noise_mode="distance-correlated", noise_color=True, filter=False, chunk_duration=10
    )
    generator = MEArec.gen_recordings(params=params, templates=str(templates_path), verbose=False, n_jobs=1)
    recording_path = cache_folder / f"recording_{probe_name}.h5"
    MEArec.save_recording_generator(generator, str(recording_path), verbose=False)
    return si.read_mearec(recording_path)


def simulate_templates(probe_name, file_path):
    """Simulate 10 neurons of each cell model at random places beside a probe, and save their templates."""
    import MEArec

    # NEURON compiles its mechanisms by a program beside this Python, and crashes where it is not found
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    params = MEArec.get_default_templates_params()
    params |= dict(
        probe=probe_name, n=N_TEMPLATES_PER_MODEL, min_amp=MIN_AMPLITUDE_UV, ncontacts=1, seed=TEMPLATES_SEED
    )
    generator = MEArec.gen_templates(
        MEArec.get_default_cell_models_folder(), params=params, parallel=False, verbose=False
    )
    part = file_path.with_suffix(".part.h5")
    MEArec.save_template_generator(generator, str(part), verbose=False)
    part.replace(file_path)
