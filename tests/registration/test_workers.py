"""The sorter runs where SpikeInterface looks its name up in a new process, and its results load there."""

import pytest

# No unit is needed to try the look-up, and the mixture alone is the shortest way through the sorter.
QUICK_PARAMS = {"assignment": "gmm", "torch_device": "cpu", "save_embeddings": False}


def write_script(folder, body, tiny_recording_folder):
    """A script that has a list of one job; guarded, because spawned workers import it again."""
    lines = [
        "import spikeinterface as si",
        "from spikeinterface.sorters import run_sorter, run_sorter_jobs",
        "def main():",
        f"    recording = si.load({str(tiny_recording_folder)!r})",
        f"    job = dict(sorter_name='huidurep', folder={str(folder / 'out')!r}, **{QUICK_PARAMS!r})",
        "    job['recording'] = recording",
        *("    " + line for line in body),
        "if __name__ == '__main__':",
        "    main()",
    ]
    script = folder / "script.py"
    script.write_text("\n".join(lines) + "\n")
    return script


@pytest.fixture(scope="module")
def sorted_folder(installed, tiny_recording_folder, tmp_path_factory):
    """The folder of a sorting made in a loky worker."""
    folder = tmp_path_factory.mktemp("loky")
    body = [
        "sorting, = run_sorter_jobs([job], engine='joblib', engine_kwargs=dict(n_jobs=2), return_output=True)",
        "print(sorting.get_num_units())",
    ]
    installed.run(write_script(folder, body, tiny_recording_folder))
    return folder / "out"


def test_loky(sorted_folder):
    assert (sorted_folder / "sorter_output" / "sorting").is_dir()
    assert (sorted_folder / "sorter_output" / "huidurep.log").stat().st_size > 0


def test_load_in_a_new_process(installed, sorted_folder):
    code = f"import spikeinterface as si; print(type(si.load({str(sorted_folder)!r}).sorting_info['params']).__name__)"
    assert installed.run_code(code).strip() == "dict"


def test_spawned_process(installed, tiny_recording_folder, tmp_path):
    body = [
        "import multiprocessing",
        "kwargs = dict(max_workers=1, mp_context=multiprocessing.get_context('spawn'))",
        "run_sorter_jobs([job], engine='processpoolexecutor', engine_kwargs=kwargs)",
    ]
    installed.run(write_script(tmp_path, body, tiny_recording_folder))
    assert (tmp_path / "out" / "sorter_output" / "sorting").is_dir()


def test_slurm_script(installed, tiny_recording_folder, tmp_path):
    body = [
        "import subprocess, types",
        "from spikeinterface.sorters import get_default_sorter_params, launcher",
        "submit = lambda *args, **kwargs: types.SimpleNamespace(stdout='submitted', stderr='')",
        "launcher.subprocess = types.SimpleNamespace(run=submit)",
        "job = {**get_default_sorter_params('huidurep'), **job}",  # every parameter is printed into the script
        f"run_sorter_jobs([job], engine='slurm', engine_kwargs=dict(tmp_script_folder={str(tmp_path / 'jobs')!r}))",
    ]
    installed.run(write_script(tmp_path, body, tiny_recording_folder))
    script = tmp_path / "jobs" / "si_script_0.py"
    assert script.read_text().startswith(f"#! {installed.python}\n")
    installed.run(script)
    assert (tmp_path / "out" / "sorter_output" / "sorting").is_dir()
