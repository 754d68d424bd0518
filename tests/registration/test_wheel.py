"""What the wheel holds, what an install puts where, and what an uninstall leaves."""

import shutil
import zipfile

import pytest

from .conftest import PROJECT_FOLDER, Environment

LOOK_UP = "import spikeinterface.sorters as s; print('huidurep' in s.available_sorters())"


def test_contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        record = archive.read(next(name for name in names if name.endswith("/RECORD"))).decode()
        entry_points = archive.read(next(name for name in names if name.endswith("/entry_points.txt"))).decode()
    for name in ("spikeinterface_huidurep.pth", "spikeinterface_huidurep.start", "spikeinterface_huidurep/pipeline.py"):
        assert name in names
        assert f"\n{name},sha256=" in "\n" + record
    assert any(
        name.startswith("spikeinterface_huidurep/model/weights/") and name.endswith(".safetensors") for name in names
    )
    assert any(
        name.startswith("spikeinterface_huidurep/training/configs/") and name.endswith(".toml") for name in names
    )
    assert "[spikeinterface.sorters]\nhuidurep = spikeinterface_huidurep.sorter:HuiduRepSorter" in entry_points
    assert "huidurep = spikeinterface_huidurep.cli:main" in entry_points
    assert {name.split("/")[0] for name in names if not name.startswith("spikeinterface_huidurep-")} == {
        "spikeinterface_huidurep",
        "spikeinterface_huidurep.pth",
        "spikeinterface_huidurep.start",
    }


def test_entry_point_loads_the_sorter(installed):
    code = (
        "from importlib.metadata import entry_points\n"
        "point, = {p.value: p for p in entry_points(group='spikeinterface.sorters', name='huidurep')}.values()\n"
        f"print(point.load().sorter_name); {LOOK_UP}"
    )
    process = installed.run("-c", code)
    assert process.stdout.split() == ["huidurep", "True"] and process.stderr == ""


def test_uninstall_leaves_nothing(wheel, tmp_path):
    environment = Environment(tmp_path / "environment")
    environment.pip("install", "--no-deps", wheel)
    assert environment.run_code(LOOK_UP).strip() == "True"
    environment.pip("uninstall", "--yes", "spikeinterface_huidurep")
    assert environment.list_own_files() == []
    process = environment.run("-c", LOOK_UP)
    assert process.stdout.strip() == "False" and process.stderr == ""


def test_editable_install_has_the_hook(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT_FOLDER / name, source)
    for name in ("spikeinterface_huidurep", "startup"):
        shutil.copytree(PROJECT_FOLDER / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    environment = Environment(tmp_path / "environment")
    environment.pip("install", "--no-deps", "--no-build-isolation", "--editable", source)
    assert environment.run_code(LOOK_UP).strip() == "True"
    code = "import spikeinterface_huidurep; print(spikeinterface_huidurep.__file__)"
    assert environment.run_code(code).strip() == str(source / "spikeinterface_huidurep" / "__init__.py")
    environment.pip("uninstall", "--yes", "spikeinterface_huidurep")
    assert environment.list_own_files() == []


@pytest.mark.parametrize("order", ["before", "after"])
def test_explicit_import_registers_without_an_install(wheel, tmp_path, order):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "unpacked")
    environment = Environment(tmp_path / "environment")
    lines = ["import spikeinterface_huidurep", "import spikeinterface.sorters as s"]
    code = "\n".join([*(lines if order == "before" else lines[::-1]), "print('huidurep' in s.installed_sorters())"])
    path = str(tmp_path / "unpacked")
    assert environment.run_code(LOOK_UP, PYTHONPATH=path).strip() == "False"  # start-up files are not read there
    assert environment.run_code(code, PYTHONPATH=path).strip() == "True"
