"""Run the frozen encoder over many spikes."""

import logging
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np

logger = logging.getLogger(__name__)

CPU_BATCH_SIZE = 128  # spikes of a forward pass on a CPU: their tokens fit in the cache of a core


def embed_waveforms(waveforms, positions, channel_mask, encoder, *, batch_size=1024, torch_device="cpu"):
    """
    Encode spike waveforms with the frozen encoder.

    Parameters
    ----------
    waveforms : np.ndarray, float32, shape (n_spikes, n_channels, n_samples)
        Whitened traces, in multiples of the noise SD; trough of the centre channel at `encoder.config.n_before`.
    positions : np.ndarray, float32, shape (n_spikes, n_channels, 2)
        Channel positions in um, relative to the centre channel of the spike.
    channel_mask : np.ndarray, bool, shape (n_spikes, n_channels)
        False where a neighbour does not exist; such channels do not change the result.
    encoder : SpikeEncoder | PaperEncoder
        See `model.weights.load_encoder`.
    batch_size : int, default: 1024
        Spikes a forward pass, at most 128 of them on a CPU. Halved on out-of-memory.
    torch_device : "auto" | "cpu" | "cuda" | "cuda:<i>" | "mps", default: "cpu"

    Returns
    -------
    embeddings : np.ndarray, float32, shape (n_spikes, n_dims)
        Independent of `batch_size` up to 1e-5.

    Raises
    ------
    ValueError
        If the arrays do not fit each other or the encoder: says both shapes.
    """
    _check_inputs(waveforms, positions, channel_mask, encoder)
    embeddings = np.empty((len(waveforms), encoder.config.n_dims), dtype=np.float32)

    def run_batch(network, inputs, indices, n_used):
        embeddings[indices] = network.encode(*inputs).cpu().numpy()

    _run_batches(run_batch, waveforms, positions, channel_mask, encoder, batch_size, torch_device)
    return embeddings


def denoise_waveforms(waveforms, positions, channel_mask, encoder, *, batch_size=1024, torch_device="cpu"):
    """
    Estimate the clean waveforms of spikes with the encoder's decoder.

    Parameters are those of `embed_waveforms`.

    Returns
    -------
    denoised : np.ndarray, float32, shape (n_spikes, n_channels, n_samples)
        In multiples of the noise SD, 0 on masked channels. A `PaperEncoder` also leaves 0 on the channels that it does
        not use, see `model.paper_encoder.assign_slots`.

    Raises
    ------
    ValueError
        If the arrays do not fit each other or the encoder: says both shapes.
    """
    _check_inputs(waveforms, positions, channel_mask, encoder)
    denoised = np.zeros(waveforms.shape, dtype=np.float32)

    def run_batch(network, inputs, indices, n_used):
        denoised[indices, :n_used] = network(*inputs)[1].cpu().numpy()

    _run_batches(run_batch, waveforms, positions, channel_mask, encoder, batch_size, torch_device)
    return denoised


def resolve_torch_device(torch_device="auto"):
    """
    The device to run on.

    Parameters
    ----------
    torch_device : "auto" | "cpu" | "cuda" | "cuda:<i>" | "mps", default: "auto"
        "auto" takes CUDA if there is one, otherwise the CPU.

    Returns
    -------
    device : torch.device

    Raises
    ------
    ValueError
        If the name is unknown or this machine has no such device.
    """
    import torch

    if torch_device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(torch_device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(_describe_device_error(torch_device, "no such kind of device")) from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(_describe_device_error(torch_device, "no such kind of device"))
    if device.type == "cuda":
        n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= n_devices:
            raise ValueError(_describe_device_error(torch_device, f"this machine has {n_devices} CUDA devices"))
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(_describe_device_error(torch_device, "this machine has no MPS"))
    return device


def _describe_device_error(torch_device, reason):
    return f"torch_device must be 'auto', 'cpu', 'cuda', 'cuda:<i>' or 'mps', got {torch_device!r}: {reason}"


def _check_inputs(waveforms, positions, channel_mask, encoder):
    config = encoder.config
    if waveforms.ndim != 3 or waveforms.shape[2] != config.n_samples or waveforms.shape[1] > config.max_channels:
        raise ValueError(
            f"waveforms must have shape (n_spikes, n_channels, n_samples) with at most {config.max_channels} channels "
            f"and {config.n_samples} samples, got {waveforms.shape}"
        )
    if channel_mask.shape != waveforms.shape[:2]:
        raise ValueError(f"channel_mask must have shape {waveforms.shape[:2]}, got {channel_mask.shape}")
    if positions.shape != (*waveforms.shape[:2], 2):
        raise ValueError(f"positions must have shape {(*waveforms.shape[:2], 2)}, got {positions.shape}")


def _run_batches(run_batch, waveforms, positions, channel_mask, encoder, batch_size, torch_device):
    """
    Call `run_batch` on spikes in the order of their number of channels, so that little padding is computed.

    On a CPU every thread of torch takes batches of its own: the matrices of one spike are too small to be shared.
    """
    import torch

    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    device = resolve_torch_device(torch_device)
    arrays = (waveforms, positions, channel_mask)
    n_workers = 1
    if device.type == "cpu":
        batch_size = min(batch_size, CPU_BATCH_SIZE)
        n_workers = max(1, min(torch.get_num_threads(), len(waveforms) // batch_size))
    # channels in use, up to the last existing one: masked channels before it stay masked
    n_channels = np.where(channel_mask, np.arange(1, channel_mask.shape[1] + 1), 1).max(axis=1, initial=1)
    order = np.argsort(n_channels, kind="stable")
    was_training, home = encoder.training, next(encoder.parameters()).device
    encoder.eval().to(device)

    def run_share(share):
        _run_in_order(run_batch, arrays, n_channels, share, encoder, batch_size, device)

    try:
        if n_workers == 1:
            run_share(order)
        else:
            _run_threads(run_share, [order[first::n_workers] for first in range(n_workers)])
    finally:
        encoder.to(home).train(was_training)


def _run_threads(function, shares):
    """Call `function` on every share in a thread of its own, each with one thread of torch."""
    import torch

    n_threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(len(shares), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(function, shares))
    finally:
        torch.set_num_threads(n_threads)


def _run_in_order(run_batch, arrays, n_channels, order, encoder, batch_size, device):
    """Call `run_batch` on batches of the spikes `order`, smaller ones where the memory does not suffice."""
    import torch

    first = 0
    with torch.inference_mode():
        while first < len(order):
            indices = order[first : first + batch_size]
            n_used = min(int(n_channels[indices[-1]]), arrays[0].shape[1])
            try:
                run_batch(encoder, [_to_tensor(array[indices, :n_used], device) for array in arrays], indices, n_used)
                first += len(indices)
            except torch.OutOfMemoryError:
                device, batch_size = _reduce_memory(device, len(indices))
                encoder.to(device)


def _reduce_memory(device, batch_size):
    """Half the batch on the same device, or the CPU when a single spike does not fit."""
    import torch

    if batch_size > 1:
        logger.info("out of memory on %s: batch size %d -> %d", device, batch_size, batch_size // 2)
        return device, batch_size // 2
    if device.type == "cpu":
        raise MemoryError("not enough memory to embed a single spike")
    warnings.warn(f"{device} has no memory for a single spike: embedding continues on the CPU", stacklevel=4)
    return torch.device("cpu"), 256


def _to_tensor(array, device):
    import torch

    dtype = np.bool_ if array.dtype == bool else np.float32
    return torch.from_numpy(np.ascontiguousarray(array, dtype=dtype)).to(device)
