"""nanoMERCI: the package behind train.py. A line of this list may import the lines above it.

    address, kernels/             randomness by address; Triton kernels beside their torch twins
    runtime/                      config, ranks, checkpoint, log, plugins
    tasks/, tasks/graders/        one file per task; worker processes that grade and can be killed
    grpo, dapo, cfn               the papers' formulas
    merci, counts, advantages     the method; exact counts; advantages of other objectives
    bonuses/, objectives          one file per bonus; one row per objective
    loop/                         what a step is built on: model, rollout, collect, evaluate ...
    view/                         command line of sample.py, heat map, report
    sample, train                 the sampler; the loop
    lab/, bench/, integrations/   experiments; speed; MERCI inside other trainers

The files at the top level of the repository belong to the package: a wheel has them inside, and in
a checkout the package's path includes their folder. Each has one name, nanomerci.cfn; what imports
the bare `cfn` in a checkout is given the same module.
"""

import os
import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import PathFinder
from importlib.util import find_spec, spec_from_loader
from pathlib import Path

# A thread that waits for another spins, by default for so long that next to a busy process
# everything takes several times as long. To be set before torch is imported; the number is chosen
# by a table in docs/performance.md.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

TOP_LEVEL = ("train", "sample", "cfn", "grpo", "dapo", "kernels")
_root = Path(__file__).parent.parent


class _OneName(MetaPathFinder, Loader):
    """Bare names of our top-level files are the package's modules, where they would be found in the
    checkout; others' modules of the same names are left alone.
    """

    def find_spec(self, name, path=None, target=None):
        top, _, rest = name.partition(".")
        found = PathFinder.find_spec(top) if top in TOP_LEVEL else None
        if not found or not found.origin or _root not in Path(found.origin).parents:
            return None
        if rest and not PathFinder.find_spec(name, [str(_root / top)]):
            return None  # Hugging Face's package of the name `kernels`: see kernels/__init__.py
        return spec_from_loader(name, self)

    def create_module(self, spec):
        module = import_module(f"nanomerci.{spec.name}")
        self.spec = module.__spec__
        return module

    def get_code(self, name):  # python -m kernels.bench
        name = f"nanomerci.{name}"
        return find_spec(name).loader.get_code(name)

    def exec_module(self, module):
        module.__spec__ = self.spec  # which the import system has replaced


if (_root / "cfn.py").exists():  # a checkout
    __path__.append(str(_root))
    for _name in TOP_LEVEL:
        _module = sys.modules.get(_name)
        if _module and _root in Path(getattr(_module, "__file__", None) or "/").parents:
            sys.modules[f"{__name__}.{_name}"] = globals()[_name] = _module  # it imported us
    sys.meta_path.insert(0, _OneName())
