"""
Sort ground-truth recordings and write one JSON file a case, sorter and seed.

    python benchmarks/run.py --sets GT_FOLDER --cases tetrode_static np32_static --sorters huidurep lupin
    python benchmarks/run.py --recording REC --ground-truth GT --sorters huidurep
    python benchmarks/run.py --cases native --sorters huidurep

GT_FOLDER/CASE/recording and GT_FOLDER/CASE/sorting are opened by `spikeinterface.load`; the case `native` is made by
SpikeInterface's own generator. Every sorting runs in a process of its own, one at a time; results that exist are kept.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
WELL_DETECTED = 0.8
PACKAGES = ("spikeinterface", "spikeinterface_huidurep", "torch", "numpy", "scikit-learn")
SEEDED = ("huidurep", "lupin", "spykingcircus2", "tridesclous2")


def load_case(arguments):
    """Return (recording, ground truth) of one case."""
    import spikeinterface.full as si

    if arguments.recording:
        return si.load(arguments.recording), si.load(arguments.ground_truth)
    if arguments.case == "native":
        recording, ground_truth = si.generate_ground_truth_recording(
            durations=[300.0], sampling_frequency=30000.0, num_channels=32, num_units=20, seed=0
        )
        folder = Path(arguments.work_folder).with_name("native_recording")
        return recording.save(folder=folder, overwrite=True, progress_bar=False), ground_truth
    folder = Path(arguments.sets) / arguments.case
    return si.load(folder / "recording"), si.load(folder / "sorting")


def measure(arguments):
    """Sort one case and compare with the truth; returns a dictionary of plain values."""
    import spikeinterface.full as si

    recording, ground_truth = load_case(arguments)
    params = dict(job_kwargs=dict(n_jobs=arguments.n_jobs, chunk_duration="1s", progress_bar=False))
    params.update(json.loads(arguments.params))
    if arguments.sorter in SEEDED:
        params["seed"] = arguments.seed
    start = time.perf_counter()
    sorting = si.run_sorter(
        arguments.sorter, recording, folder=arguments.work_folder, remove_existing_folder=True, **params
    )
    seconds = time.perf_counter() - start
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    comparison = si.compare_sorter_to_ground_truth(ground_truth, sorting, exhaustive_gt=True, delta_time=0.4)
    accuracy = comparison.get_performance()["accuracy"].to_numpy(dtype=float)
    return dict(
        mean_accuracy=float(accuracy.mean()),
        accuracies=sorted(accuracy.round(4).tolist()),
        n_true_units=len(accuracy),
        n_well_detected=int((accuracy >= WELL_DETECTED).sum()),
        n_units=len(sorting.unit_ids),
        n_false_positive_units=int(comparison.count_false_positive_units()),
        n_redundant_units=int(comparison.count_redundant_units()),
        n_overmerged_units=int(comparison.count_overmerged_units()),
        seconds=round(seconds, 1),
        peak_memory_mb=round(peak_bytes / 1e6),
        duration_s=recording.get_total_duration(),
        n_channels=recording.get_num_channels(),
    )


def describe_run(arguments):
    """Facts without which a result means little: versions, commit, machine, seed."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=RESULTS.parent
    ).stdout.strip()
    return dict(
        case=arguments.case,
        sorter=arguments.sorter,
        params=json.loads(arguments.params),
        seed=arguments.seed,
        n_jobs=arguments.n_jobs,
        commit=commit,
        python=platform.python_version(),
        n_cores=os.cpu_count(),
        versions={name: version(name) for name in PACKAGES},
    )


def run_one(arguments):
    """Run in this process and write the result, or the error, to `arguments.result`."""
    result = describe_run(arguments)
    try:
        result.update(measure(arguments))
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"[-2000:]
    Path(arguments.result).write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")


def run_all(arguments):
    """Run every case, sorter and seed that has no result yet, each in a new process."""
    RESULTS.mkdir(exist_ok=True)
    cases = arguments.cases or [Path(arguments.recording).parent.name]
    for case in cases:
        for sorter in arguments.sorters:
            for seed in arguments.seeds:
                name = f"{case}{arguments.suffix}_{sorter}{arguments.label}_seed{seed}.json"
                result = RESULTS / name
                if result.exists() and not arguments.again:
                    continue
                command = [sys.executable, __file__, "--case", case, "--sorter", sorter, "--seed", str(seed)]
                command += ["--result", str(result), "--n-jobs", str(arguments.n_jobs), "--params", arguments.params]
                command += ["--work-folder", str(Path(arguments.work_folder) / f"{case}_{sorter}")]
                for option in ("sets", "recording", "ground_truth"):
                    if getattr(arguments, option):
                        command += ["--" + option.replace("_", "-"), getattr(arguments, option)]
                try:
                    subprocess.run(command, timeout=arguments.time_limit_s, stdout=subprocess.DEVNULL)
                except subprocess.TimeoutExpired:
                    stopped = dict(case=case, sorter=sorter, seed=seed, error=f"over {arguments.time_limit_s:g} s")
                    result.write_text(json.dumps(stopped, indent=1) + "\n", encoding="utf8")
                sys.stdout.write(f"{name}: {result.read_text(encoding='utf8') if result.exists() else 'died'}")


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", help="folder of ground-truth sets")
    parser.add_argument("--cases", nargs="+", default=[], help="names of sets, or 'native'")
    parser.add_argument("--recording", help="one recording, any folder that spikeinterface.load opens")
    parser.add_argument("--ground-truth", help="its true sorting")
    parser.add_argument("--sorters", nargs="+", default=["huidurep"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds of the sorter")
    parser.add_argument("--params", default="{}", help="sorter parameters as JSON")
    parser.add_argument("--label", default="", help="added to the sorter's name in the result file")
    parser.add_argument("--suffix", default="", help="added to the case's name in the result file")
    parser.add_argument("--n-jobs", type=int, default=1)
    parser.add_argument("--time-limit-s", type=float, default=3600.0)
    parser.add_argument("--again", action="store_true", help="run also what has a result")
    parser.add_argument("--work-folder", default="benchmark_sortings")
    for name in ("--case", "--sorter", "--result"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    arguments = make_parser().parse_args()
    run_one(arguments) if arguments.result else run_all(arguments)
