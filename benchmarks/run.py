"""
Sort recordings with known spikes and write one JSON file a case, sorter and seed of the recording.

    python benchmarks/run.py --cases native_tetrode --sorters huidurep lupin --seeds 0 1
    python benchmarks/run.py --sets GT_FOLDER --cases np32_static --sorters huidurep limit
    python benchmarks/run.py --sets GT_FOLDER/seed{seed} --seeds 0 1 --cases all --sorters huidurep
    python benchmarks/run.py --recording REC --ground-truth GT --sorters huidurep
    python benchmarks/run.py --cases native_static --params '{"weights": "mine.safetensors"}' --label _mine
    python benchmarks/run.py --sets GT_FOLDER --list

Every sorting runs in a process of its own, one at a time, by SpikeInterface's `SorterStudy`. A run that raises, dies,
or passes a limit of time or memory is a result too, with its reason. Results that exist are kept: an interrupted run
goes on where it stopped.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import time
import traceback
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import spikeinterface.full as si
from cases import find_cases, name_pair, prepare_case
from confidence import measure_confidence
from limits import run_limited
from sorters import VARIANTS, get_sorter, match_true_templates
from spikeinterface.benchmark import SorterStudy
from summary import LIMIT, RESULTS, shorten_error

PACKAGES = ("spikeinterface", "spikeinterface_huidurep", "torch", "numpy", "scikit-learn", "mountainsort5", "kilosort")
ERROR_LENGTH = 2000


def sort_and_compare(case, sorter, more_params, n_jobs, case_folder, folder):
    """
    Sort a prepared case and compare with the truth.

    Parameters
    ----------
    case : Case
    sorter : str
    more_params : dict
        Parameters beside those of `get_sorter`.
    n_jobs : int
    case_folder : Path
        As `prepare_case` wrote it.
    folder : Path
        For the SorterStudy; must not exist.

    Returns
    -------
    result : dict
        Plain values: performance by true unit, counts of units, seconds, confidence where the sorter gives any.
    """
    si.set_global_job_kwargs(n_jobs=n_jobs, chunk_duration="1s", progress_bar=False)
    analyzer = si.load_sorting_analyzer(case_folder / "analyzer")
    params = {}
    if sorter != LIMIT:
        sorter_name, params = get_sorter(sorter)
        params = dict(sorter_name=sorter_name) | params | more_params
    cases = {sorter: dict(dataset=case.name, label=sorter, params=params)}
    study = SorterStudy.create(folder, datasets={case.name: analyzer}, cases=cases, levels="sorter")
    if sorter == LIMIT:
        start = time.perf_counter()
        found = match_true_templates(analyzer.recording, analyzer.sorting, case.drifts, folder)
        seconds = time.perf_counter() - start
        study.set_precomputed_results({sorter: dict(sorting=found, run_time=seconds)})
    else:
        study.run()
    study.compute_results()
    performance = study.get_performance_by_unit().set_index("gt_unit_id").loc[analyzer.unit_ids]
    benchmark = study.benchmarks[sorter]
    confidence = measure_confidence(benchmark.sorter_folder, benchmark.result["gt_comparison"])
    return dict(
        params=params,
        seconds=round(float(study.get_run_times().loc[sorter, "run_times"]), 1),
        counts={name: int(count) for name, count in study.get_count_units().loc[sorter].items()},
        performance={
            name: performance[name].astype(float).round(4).tolist() for name in ("accuracy", "precision", "recall")
        },
        **(dict(confidence=confidence) if confidence else {}),
    )


def run_job(result_path, *arguments):
    """Call `sort_and_compare` and write what it returns, or the error, to a JSON file."""
    load_before = os.getloadavg()[0]
    try:
        result = sort_and_compare(*arguments)
    except Exception as error:
        traceback.print_exc()
        result = dict(error=f"{type(error).__name__}: {error}"[-ERROR_LENGTH:])
    result["load_average"] = [round(load_before, 2), round(os.getloadavg()[0], 2)]
    write_json(result_path, result)


def describe_machine():
    """What was measured where: machine, versions, commit."""
    git = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    return dict(
        commit=commit,
        date=datetime.now().astimezone().isoformat(timespec="seconds"),
        machine=dict(
            system=platform.platform(),
            processor=platform.processor() or platform.machine(),
            n_cores=os.cpu_count(),
            memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
        ),
        versions=dict(python=platform.python_version()) | {name: _get_version(name) for name in PACKAGES},
    )


def _get_version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def write_json(path, values):
    """Write a dictionary, one line a key, at once or not at all."""
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items()]
    part = path.with_suffix(".part")
    part.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf8")
    part.replace(path)


def put_in_place(prepared, case_folder):
    """Rename the folder of a prepared case, or remove it if another run of the same case came first."""
    try:
        prepared.rename(case_folder)
    except OSError:
        if (case_folder / "facts.json").exists():
            shutil.rmtree(prepared)
        else:
            shutil.rmtree(case_folder)  # of a run that was stopped
            prepared.rename(case_folder)


def run_one(case, sorter, seed, options):
    """
    Prepare, sort and compare one case in processes of their own.

    Parameters
    ----------
    case : Case
    sorter : str
    seed : int
        That the recording of the case is made with.
    options : argparse.Namespace

    Returns
    -------
    result : dict
        Also when it failed; then it has an "error".
    """
    work = Path(options.work_folder).absolute()
    name = name_result(case, sorter, seed, options)
    case_folder = work / "cases" / f"{name_case(case, options)}__seed{seed}"
    study_folder, part = work / name, work / f"{name}.json"
    shutil.rmtree(study_folder, ignore_errors=True)
    part.unlink(missing_ok=True)
    limits = options.time_limit_s, options.memory_limit_mb
    result = dict(
        case=name_case(case, options),
        sorter=sorter + options.label,
        seed=seed,
        n_jobs=options.n_jobs,
        limits=dict(time_s=limits[0], memory_mb=limits[1]),
        **describe_machine(),
    )
    log = work / f"{name}.log"
    if not (case_folder / "facts.json").exists():
        prepared = case_folder.with_name(f"{case_folder.name}.{os.getpid()}")
        prepared.mkdir(parents=True, exist_ok=True)  # there if a process of this number was stopped
        _, error = run_limited(prepare_case, (case, prepared, options.duration), log, *limits)
        if error:
            shutil.rmtree(prepared)
            return result | dict(error=f"no recording: {error}")
        put_in_place(prepared, case_folder)
    result |= json.loads((case_folder / "facts.json").read_text(encoding="utf8"))
    arguments = (part, case, sorter, options.params, options.n_jobs, case_folder, study_folder)
    peak_memory_mb, error = run_limited(run_job, arguments, log, *limits)
    result |= dict(error=error) if error else json.loads(part.read_text(encoding="utf8"))
    if not options.keep:
        shutil.rmtree(study_folder, ignore_errors=True)
    return result | dict(peak_memory_mb=peak_memory_mb)


def name_case(case, options):
    """The name of a case in results: with the length it is cut to."""
    return f"{case.name}_{options.duration:g}s" if options.duration else case.name


def name_result(case, sorter, seed, options):
    """File name without ending of a result."""
    return f"{name_case(case, options)}__{sorter}{options.label}__seed{seed}"


def list_runs(options):
    """
    What the command line asks for.

    Returns
    -------
    runs : list of (Case, str, int)
        Case, sorter and seed, seed by seed. A case with only one recording is run for the first seed.
    """
    runs = []
    for seed in options.seeds:
        cases = find_all_cases(options, seed)
        for case in choose_cases(cases, options):
            if case.seeded or seed == options.seeds[0]:
                runs += [(case, sorter, seed) for sorter in options.sorters]
    return runs


def find_all_cases(options, seed):
    """Cases by name, see `find_cases`."""
    return find_cases(
        options.sets, options.recording, options.ground_truth, options.real_data, options.work_folder, seed
    )


def choose_cases(cases, options):
    """The cases that are named on the command line; a recording given there needs no name."""
    names = options.cases or ([name_pair(options.recording)] if options.recording else [])
    if names == ["all"]:
        return list(cases.values())
    if names == ["drifting"]:
        return [case for case in cases.values() if case.drifts]
    unknown = sorted(set(names) - set(cases))
    if unknown:
        raise SystemExit(f"unknown cases {unknown}; the cases are {list(cases)}")
    return [cases[name] for name in names]


def run_all(options):
    """Run every case, sorter and seed that has no result yet."""
    results = Path(options.results)
    results.mkdir(parents=True, exist_ok=True)
    for case, sorter, seed in list_runs(options):
        path = results / (name_result(case, sorter, seed, options) + ".json")
        if path.exists() and not options.again:
            continue
        result = run_one(case, sorter, seed, options)
        write_json(path, result)
        print(f"{path.stem}: {summarize(result)}", flush=True)


def summarize(result):
    """One line about a result."""
    if "error" in result:
        return shorten_error(result["error"])
    accuracy = result["performance"]["accuracy"]
    return f"accuracy {sum(accuracy) / len(accuracy):.3f}, {result['seconds']} s, {result['counts']}"


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=[], help="names, see --list; or all; or drifting")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--sets", help="folder of sets NAME/recording and NAME/sorting; may contain {seed}")
    parser.add_argument("--recording", help="a recording: a path for si.load, or READER:PATH for si.read_READER")
    parser.add_argument("--ground-truth", help="its true sorting, given in the same way")
    parser.add_argument("--real-data", help="folder with the data of hybrid.py, for the hybrid cases")
    variants = ", ".join(VARIANTS)
    parser.add_argument(
        "--sorters", nargs="+", default=["huidurep"], help=f"{LIMIT}, {variants}, or any sorter of SpikeInterface"
    )
    parser.add_argument("--params", type=json.loads, default={}, help="more parameters of the sorters, as JSON")
    parser.add_argument("--label", default="", help="added to the name of the sorters in the results")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0], help="of the recordings; sorters always use seed 0"
    )
    parser.add_argument("--duration", type=float, help="cut the recordings to this number of seconds")
    parser.add_argument("--n-jobs", type=int, default=1)
    parser.add_argument("--time-limit-s", type=float, default=3600.0)
    parser.add_argument("--memory-limit-mb", type=float, default=12000.0)
    parser.add_argument("--again", action="store_true", help="run also what has a result")
    parser.add_argument("--keep", action="store_true", help="keep the folders of the sorters")
    parser.add_argument("--results", default=RESULTS, help="folder of the results")
    parser.add_argument("--work-folder", default="benchmark_work", help="folder for recordings and sortings")
    return parser


if __name__ == "__main__":
    arguments = make_parser().parse_args()
    if arguments.list:
        for each in find_all_cases(arguments, arguments.seeds[0]).values():
            print(f"{each.name:24} {each.facts}")
    else:
        run_all(arguments)
