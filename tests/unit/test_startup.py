"""The import hook on a module made here; the real one in fresh processes is in tests/registration."""

import importlib
import importlib.abc
import importlib.util
import sys

import pytest

from spikeinterface_huidurep import _startup, registration

TARGET = "huidurep_test_target"


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Calls of a stand-in `register`; the hook waits for a module of this test and no finder is left behind."""
    calls = []
    (tmp_path / f"{TARGET}.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(_startup, "TARGET", TARGET)
    monkeypatch.setattr(registration, "register", lambda: calls.append(TARGET in sys.modules))
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not isinstance(f, _startup._Finder)])
    monkeypatch.delenv(_startup.SWITCH, raising=False)
    yield calls
    sys.modules.pop(TARGET, None)


def count_finders():
    return sum(isinstance(finder, _startup._Finder) for finder in sys.meta_path)


def test_registers_after_the_import_and_only_once(calls):
    _startup.install()
    _startup.install()
    assert count_finders() == 1 and calls == []
    module = importlib.import_module(TARGET)
    assert module.value == 1 and calls == [True]
    assert count_finders() == 0


def test_module_keeps_its_own_loader(calls):
    _startup.install()
    module = importlib.import_module(TARGET)
    assert isinstance(module.__loader__, importlib.machinery.SourceFileLoader)
    assert module.__spec__.loader is module.__loader__
    assert importlib.reload(module).value == 1


def test_registers_at_once_if_the_module_is_loaded(calls):
    importlib.import_module(TARGET)
    _startup.install()
    assert calls == [True] and count_finders() == 0


def test_looking_for_the_module_is_not_importing_it(calls):
    _startup.install()
    spec = importlib.util.find_spec(TARGET)
    assert spec.loader.get_source(TARGET) == "value = 1\n"  # the wrapped loader still answers
    assert calls == []
    importlib.import_module(TARGET)
    assert calls == [True]


def test_other_modules_are_not_touched(calls):
    _startup.install()
    finder = next(finder for finder in sys.meta_path if isinstance(finder, _startup._Finder))
    assert finder.find_spec("json") is None


class MemoryLoader(importlib.abc.Loader):
    def exec_module(self, module):
        module.value = 2


class MemoryFinder:
    """Serves the module from memory, as the import hooks of some editable installs do."""

    def __init__(self, loader):
        self.loader = loader

    def find_spec(self, fullname, path=None, target=None):
        return importlib.util.spec_from_loader(fullname, self.loader) if fullname == TARGET else None


def test_modules_of_other_import_hooks_are_seen(calls):
    _startup.install()
    sys.meta_path.insert(0, MemoryFinder(MemoryLoader()))
    sys.meta_path.insert(0, sys.meta_path.pop(1))  # ours first, as at start-up
    assert importlib.import_module(TARGET).value == 2
    assert calls == [True]


def test_a_finder_that_asks_all_finders_again_does_no_harm(calls):
    class Nosy:
        busy = False

        def find_spec(self, fullname, path=None, target=None):
            if fullname != TARGET or self.busy:
                return None
            self.busy = True
            try:
                return importlib.util.find_spec(fullname)
            finally:
                self.busy = False

    sys.meta_path.insert(0, Nosy())
    _startup.install()
    assert importlib.import_module(TARGET).value == 1
    assert calls and all(calls)


def test_old_loaders_are_left_alone(calls):
    class OldLoader:
        def load_module(self, fullname):
            raise AssertionError("not used here")

    loader = OldLoader()
    sys.meta_path.insert(0, MemoryFinder(loader))
    _startup.install()
    assert importlib.util.find_spec(TARGET).loader is loader


def test_missing_module_stays_missing(calls, monkeypatch):
    monkeypatch.setattr(_startup, "TARGET", "huidurep_no_such_module")
    _startup.install()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("huidurep_no_such_module")


def test_a_failing_import_can_be_repeated(calls, tmp_path):
    source = tmp_path / f"{TARGET}.py"
    source.write_text("raise RuntimeError('first time')\n")
    _startup.install()
    with pytest.raises(RuntimeError, match="first time"):
        importlib.import_module(TARGET)
    assert calls == []
    source.write_text("value = 123456\n")
    importlib.invalidate_caches()
    assert importlib.import_module(TARGET).value == 123456
    assert calls == [True]


def test_errors_become_warnings(calls, monkeypatch):
    def fail():
        raise RuntimeError("broken")

    monkeypatch.setattr(registration, "register", fail)
    _startup.install()
    with pytest.warns(UserWarning, match="could not register the huidurep sorter: RuntimeError"):
        importlib.import_module(TARGET)


@pytest.mark.parametrize(("value", "registered"), [("1", False), ("yes", False), ("0", True), ("", True)])
def test_switch_is_read_when_the_hook_fires(calls, monkeypatch, value, registered):
    _startup.install()
    monkeypatch.setenv(_startup.SWITCH, value)
    importlib.import_module(TARGET)
    assert calls == ([True] if registered else [])


@pytest.fixture
def sorter_tables():
    """SpikeInterface's tables, put back after the test."""
    from spikeinterface.sorters import sorterlist

    full_list, by_name = list(sorterlist.sorter_full_list), dict(sorterlist.sorter_dict)
    yield sorterlist
    sorterlist.sorter_full_list[:] = full_list
    sorterlist.sorter_dict.clear()
    sorterlist.sorter_dict.update(by_name)


def test_register_changes_both_tables_in_place_once(sorter_tables):
    from spikeinterface_huidurep import HuiduRepSorter

    table, by_name = sorter_tables.sorter_full_list, sorter_tables.sorter_dict
    table[:] = [sorter for sorter in table if sorter.sorter_name != "huidurep"]
    by_name.pop("huidurep", None)
    registration.register()
    registration.register()
    assert sorter_tables.sorter_full_list is table and sorter_tables.sorter_dict is by_name
    assert table.count(HuiduRepSorter) == 1 and by_name["huidurep"] is HuiduRepSorter


def test_a_sorter_that_spikeinterface_brings_is_left(sorter_tables):
    class Theirs:
        sorter_name = "huidurep"

    sorter_tables.sorter_dict["huidurep"] = Theirs
    registration.register()
    assert sorter_tables.sorter_dict["huidurep"] is Theirs


def test_start_files_name_the_hook():
    from pathlib import Path

    folder = Path(__file__).parents[2] / "startup"
    module, function = (folder / "spikeinterface_huidurep.start").read_text().strip().split(":")
    assert getattr(importlib.import_module(module), function) is _startup.install
    lines = (folder / "spikeinterface_huidurep.pth").read_text().splitlines()
    assert len(lines) == 1 and lines[0].startswith("import ")
    compile(lines[0], "spikeinterface_huidurep.pth", "exec")


def test_hook_imports_only_the_standard_library():
    import ast
    from pathlib import Path

    tree = ast.parse(Path(_startup.__file__).read_text(encoding="utf8"))
    top_level = [name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names]
    assert set(top_level) <= set(sys.stdlib_module_names)
    assert not [node for node in tree.body if isinstance(node, ast.ImportFrom)]
