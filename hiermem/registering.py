"""Telling transformers' Auto classes of hiermem, without importing transformers before the user does.

`import hiermem` must stay light, and transformers has no way to announce a model without being imported. So
the Auto classes learn of hiermem at once where they are there already, else right after their import.
"""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

OLDEST = "5.18"
"""Oldest release of transformers that hiermem's models are made for."""
_HOME = "transformers.models.auto"
_REGISTERING = {f"{_HOME}.configuration_auto": "hiermem.config", f"{_HOME}.modeling_auto": "hiermem.model"}
"""Modules of Auto classes, and the modules of hiermem that register with them when they are imported."""


def register_with_transformers() -> None:
    """Let `AutoConfig` and `AutoModelForCausalLM` know hiermem's models from now on."""
    for auto, module in _REGISTERING.items():
        if auto in sys.modules:
            _register(module)
        else:
            sys.meta_path.insert(0, _AfterImport(auto, module))


def _register(module: str) -> None:
    """Import what registers itself; beside an older transformers, warn, and leave that as it is."""
    version = sys.modules["transformers"].__version__
    if _release(version) >= _release(OLDEST):
        import_module(module)
        return
    words = (
        f"hiermem's models need transformers {OLDEST} or newer: this is {version}, which does not know them."
    )
    warnings.warn(words, stacklevel=2)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


class _AfterImport(MetaPathFinder):
    """Waits for the import of one module, finds it in the usual way and removes itself."""

    def __init__(self, watched: str, then: str) -> None:
        self._watched, self._then = watched, then

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self._watched:
            return None
        sys.meta_path.remove(self)  # so that `find_spec` below asks the others
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenImport(spec.loader, self._then)
        return spec


class _ThenImport(Loader):
    """Loads a module with its own loader, then imports another one."""

    def __init__(self, loader: Any, then: str) -> None:
        self._loader, self._then = loader, then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register(self._then)
