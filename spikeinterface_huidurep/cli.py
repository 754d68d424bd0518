"""Command line: `huidurep demo | sort | train | check`, thin layers over the Python functions."""

import argparse
import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import spikeinterface_huidurep

KNOWN_TO_NEW_PROCESS = "import spikeinterface.sorters as s; raise SystemExit('huidurep' not in s.available_sorters())"


def main(argv=None):
    """
    Run the command line.

    Parameters
    ----------
    argv : list of str | None, default: None
        None for the arguments of the process.

    Returns
    -------
    exit_code : int
        0 if all went well.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        if argv[:1] == ["train"]:  # it has its own options, --help included
            from spikeinterface_huidurep.training.train import main as train_main

            return train_main(argv[1:]) or 0
        arguments = make_parser().parse_args(argv)
        return arguments.run(arguments)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"huidurep: {error}\n")
        return 1


def make_parser():
    """Return the argument parser."""
    parser = argparse.ArgumentParser(prog="huidurep", description="Spike sorter plugin for SpikeInterface.")
    parser.add_argument("--version", action="version", version=spikeinterface_huidurep.__version__)
    commands = parser.add_subparsers(required=True, metavar="demo | sort | train | check")

    demo = commands.add_parser("demo", help="sort a simulated recording and compare with the truth")
    demo.add_argument(
        "--folder", type=Path, default=Path("huidurep_demo"), help="for the results (default: %(default)s)"
    )
    demo.add_argument("--duration", type=float, default=60.0, help="seconds (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="of the simulation (default: %(default)s)")
    demo.set_defaults(run=run_demo_command)

    sort = commands.add_parser("sort", help="sort a recording saved by SpikeInterface")
    sort.add_argument(
        "recording", type=Path, help="folder (binary or zarr) or json file that spikeinterface.load reads"
    )
    sort.add_argument("folder", type=Path, help="for the results; must not exist")
    sort.add_argument(
        "--param",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of docs/parameters.md, value in Python syntax; may be repeated",
    )
    sort.set_defaults(run=run_sort_command)

    commands.add_parser("train", help="train an encoder, or fine-tune it on a recording (huidurep train --help)")

    check = commands.add_parser("check", help="show registration, hook files, torch, device and weights")
    check.set_defaults(run=run_check_command)
    return parser


def run_demo_command(arguments):
    """`huidurep demo`."""
    from spikeinterface_huidurep.demo import format_comparison, run_demo

    result = run_demo(arguments.folder, duration_s=arguments.duration, seed=arguments.seed)
    _write_line(format_comparison(result.comparison))
    if result.picture_path is not None:
        _write_line(f"picture: {result.picture_path}")
    return 0


def run_sort_command(arguments):
    """`huidurep sort`."""
    from spikeinterface import load
    from spikeinterface.sorters import run_sorter
    from spikeinterface.sorters.utils import SpikeSortingError

    params = dict(parse_param(text) for text in arguments.param)
    recording = load(arguments.recording)
    try:
        sorting = run_sorter("huidurep", recording, folder=arguments.folder, verbose=True, **params)
    except SpikeSortingError as error:
        raise ValueError(find_reason(str(error))) from error
    num_spikes = int(sorting.count_total_num_spikes())
    _write_line(f"{sorting.get_num_units()} units, {num_spikes} spikes in {arguments.folder}")
    return 0


def find_reason(error_trace):
    """What a ValueError says, from the text of a SpikeSortingError; all of the text if it holds no ValueError."""
    reasons = [line for line in error_trace.splitlines() if line.startswith("ValueError: ")]
    return reasons[-1].removeprefix("ValueError: ") if reasons else error_trace


def parse_param(text):
    """
    Split "name=value"; the value is a Python literal, or else a string.

    Parameters
    ----------
    text : str

    Returns
    -------
    name : str
    value : object
    """
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ValueError(f"{text!r} is not allowed; wanted NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def run_check_command(arguments):
    """`huidurep check`: exit code 0 if a new Python process knows the sorter and everything it needs is there."""
    from spikeinterface_huidurep._startup import SWITCH, is_switched_off
    from spikeinterface_huidurep.registration import find_hook_files, is_registered

    new_process = subprocess.run([sys.executable, "-c", KNOWN_TO_NEW_PROCESS], check=False, capture_output=True)
    known_to_new_process = new_process.returncode == 0
    hook_files = find_hook_files()
    weights, weights_found = _describe_weights()
    rows = {
        "version": spikeinterface_huidurep.__version__,
        "registered in this process": _say(is_registered()),
        "known to a new process": _say(known_to_new_process),
        "start-up hook": ", ".join(map(str, hook_files))
        or "not installed (import spikeinterface_huidurep to register)",
        SWITCH: "set: nothing is registered automatically" if is_switched_off() else "not set",
        "torch": _describe_torch(),
        "weights": weights,
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        _write_line(f"{name:<{width}}  {value}")
    return 0 if known_to_new_process and weights_found else 1


def _describe_torch():
    if importlib.util.find_spec("torch") is None:
        return "not installed"
    import torch

    device = "cpu"
    if torch.cuda.is_available():
        device = f"cuda ({torch.cuda.get_device_name()})"
    elif torch.backends.mps.is_available():
        device = "mps available (torch_device='mps' to use it), cpu by default"
    return f"{torch.__version__}, device: {device}, {torch.get_num_threads()} threads"


def _describe_weights():
    from spikeinterface_huidurep.model.weights import SHIPPED_WEIGHTS, hash_file

    if not SHIPPED_WEIGHTS.is_file():
        return f"missing: {SHIPPED_WEIGHTS}", False
    return f"{SHIPPED_WEIGHTS}, sha256 {hash_file(SHIPPED_WEIGHTS)}", True


def _say(condition):
    return "yes" if condition else "no"


def _write_line(text):
    sys.stdout.write(text + "\n")
