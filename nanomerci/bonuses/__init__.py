"""Exploration bonuses, one file each, picked by name: `--bonus cfn` is MERCI, the others are
baselines and controls. `--bonus FILE.py:CLASS` takes one from a file of yours.

A bonus scores the novelty of each token, makes one number per response of it, adds that to the
advantage, and counts what was visited. A subclass overrides what differs: see
nanomerci/bonuses/base.py.
"""

from importlib import import_module
from pkgutil import iter_modules

from nanomerci.bonuses.base import BONUSES, Bonus, Shaped, StateCounter, Visits, register
from nanomerci.runtime.plugins import named

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["BONUSES", "Bonus", "Shaped", "StateCounter", "Visits", "find", "register"]


def find(name):
    """--bonus -> the class of that name, from nanomerci/bonuses/ or FILE.py:CLASS."""

    def fits(bonus):
        return isinstance(bonus, type) and issubclass(bonus, Bonus)

    wanted = "a subclass of nanomerci.bonuses.Bonus"
    return named(name, "bonus", BONUSES, fits, wanted, "FILE.py:CLASS")
