"""Train the encoder further on one recording, without labels."""

import logging
import tempfile
from pathlib import Path

from spikeinterface.core.job_tools import fix_job_kwargs

from ..checks import attach_default_probe, check_recording
from ..model.weights import load_encoder, save_encoder, weights_version
from ..params import SorterParams
from .config import load_config
from .recording import RecordingSource, gather_sites, load_sites, save_sites
from .train import Trainer
from .units import Window

logger = logging.getLogger(__name__)


def finetune_encoder(recording, out, *, params=None, config="finetune", resume=False, progress=True):
    """
    Adapt the encoder to a recording, for `run_sorter("huidurep", recording, weights=out)`.

    The sorter's own first pass finds clusters; their mean waveforms, and variants of them, in noise cut from the same
    recording are the pairs of the training. It takes minutes on a CPU.

    Parameters
    ----------
    recording : BaseRecording
    out : str | Path
        The weights, a new safetensors file. Its card is written beside it, and `<name>_training` receives the
        checkpoint, the log and the loss curve.
    params : dict | None, default: None
        Sorter parameters that differ from their defaults, the same as for `run_sorter`. Training starts from the
        parameter `weights`.
    config : str, default: "finetune"
        Name of a file in training/configs or path of a toml file; its table [encoder] is not used.
    resume : bool, default: False
        Continue an interrupted run.
    progress : bool, default: True
        Show progress bars.

    Returns
    -------
    path : Path
        Of the weights.

    Raises
    ------
    ValueError
        If `out` is not a new safetensors file, if the recording or a parameter is refused by the sorter, if there are
        too few spikes, or nothing to resume.
    """
    out = _check_out(out)
    folder = out.with_name(f"{out.stem}_training")
    sites_path = folder / "sites.npz"
    params = SorterParams.from_dict(params or {})
    train_config, view_config, _ = load_config(config)
    if resume and not sites_path.is_file():
        raise ValueError(f"nothing to resume: no {sites_path}")
    if not resume:
        recording = attach_default_probe(recording)
        check_recording(recording)
        params.check_valid(recording)
        job_kwargs = fix_job_kwargs(dict(params.job_kwargs, progress_bar=progress))
        with tempfile.TemporaryDirectory() as temporary:
            sites = gather_sites(recording, params, Path(temporary), job_kwargs)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "checkpoint.pt").unlink(missing_ok=True)
        save_sites(sites, sites_path)
    sites = load_sites(sites_path)
    start = load_encoder(params.weights)
    card = dict(
        started_from=weights_version(params.weights),
        config=str(config),
        data={
            "recording": f"{sum(len(site.waveforms) for site in sites)} clusters at {len(sites)} places, found by the "
            "sorter without labels; its noise"
        },
    )
    source = RecordingSource(sites, Window(start.config.n_samples, start.config.n_before))
    trainer = Trainer(train_config, view_config, start.config, folder, card=card, source=source, start=start)
    if resume and (folder / "checkpoint.pt").is_file():
        trainer.resume()
    else:
        trainer.validate()  # for validation.log: the scores to compare with
    trainer.run(progress=progress)
    save_encoder(trainer.calibrate(), out, trainer.make_card())
    logger.info("wrote %s", out)
    return out


def _check_out(out):
    out = Path(out)
    if out.suffix != ".safetensors":
        raise ValueError(f"the weights go to a file that ends in .safetensors, got {str(out)!r}")
    if out.exists():
        raise ValueError(f"{out} exists already; remove it or choose another name")
    return out
