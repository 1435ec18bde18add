"""Packages that another package imports at once and hardly ever uses: imported when they are first touched.

    with deferred(*AVALANCHES):
        import avalanche        # its plots and exporters hold stand-ins, until one of them is called

Avalanche imports all of itself, and with it what only its plots, exporters, downloads and image networks need: most of
the processor time that its import takes (5.9 s; 0.5 s beside torch without). Whoever calls a plot gets it: a stand-in
stands for the thing itself.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

AVALANCHES = (
    *("GPUtil", "gdown", "matplotlib", "qpsolvers", "torchmetrics", "wandb"),
    *("torch.utils.tensorboard", "torchvision.models", "torchvision.ops"),
)
"""What Avalanche 0.6.0 imports for its plots, exporters, downloads, GPU meters, GEM and image networks alone."""


class Deferred:
    """One name of a module: the real one, once it is called, asked for an attribute, or tested against."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def _real(self) -> Any:
        return getattr(import_module(self._module), self._name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._real()(*args, **options)

    def __getattr__(self, name: str) -> Any:
        if isinstance(sys.modules.get(self._module), _StandIn):
            raise AttributeError(name)  # typing asks anything for names like ``__origin__``: that is no use of it
        return getattr(self._real(), name)

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, self._real())

    def __subclasscheck__(self, subclass: Any) -> bool:
        return issubclass(subclass, self._real())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._real(),)


class _StandIn(ModuleType):
    """Within the block whatever is asked of it is there, deferred; after it, it gives what the module gives."""

    after = False

    def __getattr__(self, name: str) -> Any:
        if self.after:
            return getattr(import_module(self.__name__), name)
        if name.startswith("__"):
            raise AttributeError(name)  # asked by the import itself
        return Deferred(self.__name__, name)


class _Finder(MetaPathFinder, Loader):
    def __init__(self, packages: Sequence[str]) -> None:
        self._packages = packages

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        mine = any(f"{fullname}.".startswith(f"{package}.") for package in self._packages)
        return ModuleSpec(fullname, self, is_package=True) if mine else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None: ...


@contextmanager
def deferred(*packages: str) -> Iterator[None]:
    """Within it an import of packages that are not there yet gives stand-ins; after it, the packages themselves."""
    finder = _Finder([package for package in packages if package not in sys.modules])
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for module in [module for module in sys.modules.values() if isinstance(module, _StandIn)]:
            module.after = True
            del sys.modules[module.__name__]
