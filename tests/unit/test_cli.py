import subprocess
import sys
import types

import numpy as np
import pytest
from spikeinterface.core import NumpyRecording, NumpySorting

import spikeinterface_huidurep
from spikeinterface_huidurep import cli


def test_public_names_are_listed_and_unknown_ones_refused():
    assert {"HuiduRepSorter", "register", "load_encoder", "SorterParams"} <= set(dir(spikeinterface_huidurep))
    with pytest.raises(AttributeError, match="no_such_name"):
        spikeinterface_huidurep.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", spikeinterface_huidurep.__all__)
def test_public_names_exist(name):
    assert getattr(spikeinterface_huidurep, name) is not None


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, spikeinterface_huidurep\n"
        "print(*{name.partition('.')[0] for name in sys.modules} & {'numpy', 'torch', 'spikeinterface', 'scipy'})"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.strip() == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("detect_threshold=4.5", ("detect_threshold", 4.5)),
        ("peak_sign=both", ("peak_sign", "both")),
        ("peak_sign='both'", ("peak_sign", "both")),
        ("weights=None", ("weights", None)),
        ("save_embeddings=False", ("save_embeddings", False)),
        ("job_kwargs={'n_jobs': 2}", ("job_kwargs", {"n_jobs": 2})),
        ("weights=folder/a=b.safetensors", ("weights", "folder/a=b.safetensors")),
    ],
)
def test_parse_param(text, expected):
    assert cli.parse_param(text) == expected


@pytest.mark.parametrize("text", ["detect_threshold", "=4.5", ""])
def test_parse_param_refuses(text):
    with pytest.raises(ValueError, match="NAME=VALUE"):
        cli.parse_param(text)


def test_a_command_is_needed(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 2
    assert "check" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.strip() == spikeinterface_huidurep.__version__


def test_train_passes_its_arguments_on(monkeypatch):
    received = []
    stand_in = types.SimpleNamespace(main=lambda argv: received.append(argv))
    monkeypatch.setitem(sys.modules, "spikeinterface_huidurep.training.train", stand_in)
    assert cli.main(["train", "--config", "smoke.toml", "--help"]) == 0
    assert received == [["--config", "smoke.toml", "--help"]]


def test_sort_passes_parameters_on(monkeypatch, tiny_recording_folder, tmp_path, capsys):
    received = {}

    def run_sorter(name, recording, folder, verbose, **params):
        received.update(params, name=name, num_channels=recording.get_num_channels(), folder=folder)
        return NumpySorting.from_unit_dict([{0: np.array([5, 9])}], sampling_frequency=30_000.0)

    monkeypatch.setattr("spikeinterface.sorters.run_sorter", run_sorter)
    folder = tmp_path / "out"
    argv = ["sort", str(tiny_recording_folder), str(folder), "--param", "seed=3", "--param", "peak_sign=both"]
    assert cli.main(argv) == 0
    assert received == {"name": "huidurep", "num_channels": 4, "folder": folder, "seed": 3, "peak_sign": "both"}
    assert "1 units, 2 spikes" in capsys.readouterr().out


def test_user_errors_are_one_line(capsys, tiny_recording_folder, tmp_path):
    argv = ["sort", str(tiny_recording_folder), str(tmp_path / "out"), "--param", "detect_threshold=-1"]
    assert cli.main(argv) == 1
    error = capsys.readouterr().err
    assert error.startswith("huidurep: ") and "detect_threshold=-1" in error
    assert "Traceback" not in error


def test_errors_of_the_data_are_one_line(capsys, tmp_path):
    recording = NumpyRecording([np.zeros((30_000, 4), "float32")], 30_000.0)
    recording.set_dummy_probe_from_locations(20.0 * np.arange(8).reshape(4, 2))
    recording.save(folder=tmp_path / "flat")
    assert cli.main(["sort", str(tmp_path / "flat"), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("huidurep: all channels are flat")


def test_reason_of_an_error_that_is_no_value_error():
    assert cli.find_reason("trace\nMemoryError: none left") == "trace\nMemoryError: none left"


def test_check_tells_what_is_there(capsys):
    exit_code = cli.main(["check"])
    output = capsys.readouterr().out
    assert "registered in this process" in output and "sha256" in output
    rows = dict(line.split("  ", 1) for line in output.splitlines())
    known = next(value.strip() for name, value in rows.items() if name == "known to a new process")
    assert exit_code == (0 if known == "yes" else 1)


def test_check_fails_when_switched_off(monkeypatch, capsys):
    monkeypatch.setenv("SPIKEINTERFACE_HUIDUREP_NO_AUTOREGISTER", "1")
    assert cli.main(["check"]) == 1
    assert "set: nothing is registered automatically" in capsys.readouterr().out
