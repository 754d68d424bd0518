"""Start-up hook: registers once SpikeInterface's sorter list is imported. Standard library only, never raises."""

import os
import sys
import warnings

TARGET = "spikeinterface.sorters.sorterlist"
SWITCH = "SPIKEINTERFACE_HUIDUREP_NO_AUTOREGISTER"


def install():
    """Register now if SpikeInterface's sorter list is loaded already, otherwise as soon as it is."""
    if TARGET in sys.modules:
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def is_switched_off():
    """Tell whether the environment forbids registration now; asked when the hook fires, not when Python starts."""
    return os.environ.get(SWITCH, "") not in ("", "0")


def _register():
    try:
        if not is_switched_off():
            from spikeinterface_huidurep.registration import register

            register()
    except Exception as error:
        warnings.warn(f"could not register the huidurep sorter: {error!r}", stacklevel=2)


class _Finder:
    """Finds TARGET through the other finders of `sys.meta_path` and wraps its loader; leaves after the first load."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == TARGET:
            others = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
            spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
            if hasattr(getattr(spec, "loader", None), "exec_module"):
                spec.loader = _Loader(spec.loader)
            return spec


class _Loader:
    """The real loader, except that it registers after the load and then steps aside."""

    def __init__(self, loader):
        self.loader = loader

    def __getattr__(self, name):
        return getattr(self.__dict__["loader"], name)

    def exec_module(self, module):
        module.__loader__ = module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
        _register()
