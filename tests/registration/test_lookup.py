"""The sorter is known in new processes of an environment where the wheel is installed, at no cost to the others."""

import re

import pytest

LOOK_UP = "import spikeinterface.sorters as s; print('huidurep' in s.available_sorters(), 'huidurep' in s.sorter_dict)"
SWITCH = "SPIKEINTERFACE_HUIDUREP_NO_AUTOREGISTER"
MAX_HOOK_MS = 50.0  # generous: about 2 ms on an idle machine


@pytest.mark.parametrize("options", [[], ["-I"], ["-W", "error::UserWarning"]])
def test_known_without_an_import(installed, options):
    process = installed.run(*options, "-c", LOOK_UP)
    assert process.stdout.split() == ["True", "True"]
    assert process.stderr == ""


def test_found_by_every_function_and_no_torch_is_loaded(installed):
    code = (
        "import sys, spikeinterface.sorters as s\n"
        "assert 'huidurep' in s.installed_sorters()\n"
        "cls = s.sorter_dict['huidurep']\n"
        "assert s.get_default_sorter_params(cls) == s.get_default_sorter_params('huidurep')\n"
        "assert s.get_sorter_params_description('huidurep').keys() == cls.default_params().keys()\n"
        "print(s.sorter_full_list.count(cls), cls.get_sorter_version(), 'torch' in sys.modules)"
    )
    count, version, torch_loaded = installed.run_code(code).split()
    assert count == "1" and torch_loaded == "False"
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\+\S+-[0-9a-f]{8}", version)


def test_known_under_spikeinterface_full(installed):
    code = "import spikeinterface.full as si; print('huidurep' in si.available_sorters())"
    assert installed.run_code(code).strip() == "True"


def test_hook_is_light(installed):
    lines = installed.run("-X", "importtime", "-c", "pass").stderr.splitlines()
    rows = [line.removeprefix("import time:").split("|") for line in lines if line.count("|") == 2]
    times_us = {name.strip(): int(own) for own, _, name in rows if own.strip().isdigit()}
    assert "spikeinterface_huidurep._startup" in times_us
    assert {name.partition(".")[0] for name in times_us}.isdisjoint(
        {"numpy", "torch", "spikeinterface", "scipy", "logging"}
    )
    own_us = sum(time_us for name, time_us in times_us.items() if name.startswith("spikeinterface_huidurep"))
    assert own_us < 1000 * MAX_HOOK_MS


@pytest.mark.parametrize("first", ["HuiduRepSorter", "SorterParams", "register"])
def test_any_public_name_may_be_what_imports_spikeinterface(installed, first):
    process = installed.run("-c", f"from spikeinterface_huidurep import {first}; {LOOK_UP}")
    assert process.stdout.split() == ["True", "True"] and process.stderr == ""


def test_package_loads_no_spikeinterface(installed):
    code = "import sys, spikeinterface_huidurep; print('spikeinterface' in sys.modules)"
    assert installed.run_code(code).strip() == "False"


def test_switched_off_from_outside(installed):
    assert installed.run_code(LOOK_UP, **{SWITCH: "1"}).split() == ["False", "False"]


def test_switched_off_by_the_script_itself(installed):
    assert installed.run_code(f"import os; os.environ['{SWITCH}'] = '1'; {LOOK_UP}").split() == ["False", "False"]


def test_switched_off_registers_by_hand(installed):
    code = f"import spikeinterface_huidurep as h; h.register(); {LOOK_UP}"
    assert installed.run_code(code, **{SWITCH: "1"}).split() == ["True", "True"]


def test_check_command(installed):
    process = installed.run("-m", "spikeinterface_huidurep", "check")
    assert re.search(r"registered in this process +yes", process.stdout)
    assert re.search(r"known to a new process +yes", process.stdout)
    hook_files = re.search(r"start-up hook +(.*)", process.stdout)[1].split(", ")
    assert hook_files == [str(installed.site_packages / f"spikeinterface_huidurep.{kind}") for kind in ("pth", "start")]
    assert str(installed.site_packages / "spikeinterface_huidurep" / "model") in process.stdout
    assert installed.run("-m", "spikeinterface_huidurep", "check", check=False, **{SWITCH: "1"}).returncode == 1
