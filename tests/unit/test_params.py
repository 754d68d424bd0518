import ast
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from spikeinterface.core import NumpyRecording

from spikeinterface_huidurep.params import (
    SorterParams,
    get_default_params,
    get_params_description,
    make_params_table,
)

DOCS_FILE = Path(__file__).parents[2] / "docs" / "parameters.md"
FIELDS = dataclasses.fields(SorterParams)
NAMES = [field.name for field in FIELDS]


def make_recording(sampling_frequency):
    return NumpyRecording([np.zeros((100, 1), dtype="float32")], sampling_frequency=sampling_frequency)


def test_defaults_are_allowed_and_survive_json_and_the_text_of_a_job_script():
    defaults = get_default_params()
    assert SorterParams.from_dict(defaults).to_dict() == defaults
    assert SorterParams.from_dict(json.loads(json.dumps(defaults))) == SorterParams()
    assert ast.literal_eval(repr(defaults)) == defaults


def test_every_parameter_is_described():
    assert list(get_params_description()) == list(get_default_params()) == NAMES
    for name, text in get_params_description().items():
        assert len(text) > 40, name


def test_defaults_are_not_shared():
    get_default_params()["job_kwargs"]["n_jobs"] = 2
    SorterParams().to_dict()["job_kwargs"]["n_jobs"] = 2
    assert SorterParams().job_kwargs == {}


def test_parameters_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SorterParams().seed = 1


def test_left_out_parameters_keep_their_default():
    params = SorterParams.from_dict({"detect_threshold": 4})
    assert params.detect_threshold == 4.0
    assert isinstance(params.detect_threshold, float)
    assert params == dataclasses.replace(SorterParams(), detect_threshold=4.0)


def test_numpy_values_become_plain():
    values = {"detect_threshold": np.float32(4.5), "seed": np.int64(3), "save_embeddings": np.False_}
    params = SorterParams.from_dict(values).to_dict()
    assert (type(params["detect_threshold"]), type(params["seed"]), type(params["save_embeddings"])) == (
        float,
        int,
        bool,
    )


@pytest.mark.parametrize("name", NAMES)
def test_nonsense_is_refused_with_name_value_and_what_is_wanted(name):
    wanted = next(field.metadata["wanted"] for field in FIELDS if field.name == name)
    for value in (object(), float("nan"), "no such value", [1, 2], -1e30):
        with pytest.raises(ValueError) as caught:
            SorterParams.from_dict({name: value})
        assert f"{name}={value!r}" in str(caught.value)
        assert wanted in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("apply_preprocessing", 1),
        ("apply_preprocessing", "False"),
        ("apply_motion_correction", 1),
        ("apply_motion_correction", 0.0),
        ("apply_motion_correction", "True"),
        ("apply_motion_correction", None),
        ("detect_threshold", True),
        ("detect_threshold", None),
        ("seed", 0.5),
        ("seed", None),
        ("seed", 2**32),
        ("batch_size", 0),
        ("torch_device", "cuda:"),
        ("torch_device", "gpu"),
        ("weights", "no/such/file.safetensors"),
        ("job_kwargs", {"number_of_jobs": 2}),
        ("job_kwargs", None),
        ("peak_sign", "NEG"),
    ],
)
def test_refused(name, value):
    with pytest.raises(ValueError, match=name):
        SorterParams.from_dict({name: value})


@pytest.mark.parametrize("value", ["auto", "cpu", "cuda", "cuda:1", "mps"])
def test_devices(value):
    assert SorterParams.from_dict({"torch_device": value}).torch_device == value


@pytest.mark.parametrize(("value", "wanted"), [("auto", "auto"), (True, True), (np.False_, False), (np.True_, True)])
def test_motion_correction_is_auto_or_a_flag(value, wanted):
    found = SorterParams.from_dict({"apply_motion_correction": value}).apply_motion_correction
    assert type(found) is type(wanted) and found == wanted


def test_weights_become_an_absolute_path(tmp_path, monkeypatch):
    (tmp_path / "mine.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    assert SorterParams.from_dict({"weights": Path("mine.safetensors")}).weights == str(tmp_path / "mine.safetensors")


def test_unknown_parameters_are_refused():
    with pytest.raises(ValueError, match="detect_treshold"):
        SorterParams.from_dict({"detect_treshold": 5})


def test_band_must_not_be_empty():
    with pytest.raises(ValueError, match="freq_min"):
        SorterParams.from_dict({"freq_min": 1500, "freq_max": 1000})


def test_motion_is_corrected_only_by_the_preprocessing():
    with pytest.raises(ValueError, match="apply_motion_correction=True needs apply_preprocessing=True"):
        SorterParams.from_dict({"apply_motion_correction": True, "apply_preprocessing": False})


@pytest.mark.parametrize("sampling_frequency", [10_000, 15_000, 24_414.0625, 40_000])
def test_sampling_rates_that_can_be_sorted(sampling_frequency):
    SorterParams().check_valid(make_recording(sampling_frequency))


@pytest.mark.parametrize("sampling_frequency", [1_000, 9_999, 40_001, 96_000])
def test_sampling_rates_that_cannot_be_sorted(sampling_frequency):
    with pytest.raises(ValueError, match=f"{sampling_frequency} Hz"):
        SorterParams().check_valid(make_recording(sampling_frequency))


def test_upper_band_edge_is_limited():
    assert SorterParams().limit_freq_max(30_000) == 7000.0
    assert SorterParams().limit_freq_max(10_000) == 4500.0


def test_committed_table_is_the_generated_one():
    assert DOCS_FILE.read_text(encoding="utf8") == make_params_table(), (
        "run: python -m spikeinterface_huidurep.params > docs/parameters.md"
    )
