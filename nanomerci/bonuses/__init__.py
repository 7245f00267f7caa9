"""Exploration bonuses, one file each, picked by name: `--bonus cfn` is MERCI, the others are
baselines and controls. `--bonus FILE.py:CLASS` takes one from a file of yours.

A bonus scores the novelty of each token, makes one number per response of it, adds that to the
advantage, and counts what was visited. A subclass overrides what differs: see
nanomerci/bonuses/base.py.
"""

from importlib import import_module
from pkgutil import iter_modules

from nanomerci.bonuses.base import BONUSES, Bonus, Shaped, StateCounter, Visits, register
from nanomerci.runtime.config import UserError, closest
from nanomerci.runtime.plugins import load_name

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["BONUSES", "Bonus", "Shaped", "StateCounter", "Visits", "find", "register"]


def find(name):
    """--bonus -> the class of that name, from nanomerci/bonuses/ or FILE.py:CLASS."""
    if ".py:" in name:
        bonus = load_name(name, "bonus")
        if not (isinstance(bonus, type) and issubclass(bonus, Bonus)):
            raise UserError(f"--bonus {name}: expected a subclass of nanomerci.bonuses.Bonus")
        return bonus
    if name not in BONUSES:
        raise UserError(
            f"--bonus {name}: unknown{closest(name, BONUSES)} Choose from {', '.join(BONUSES)}, "
            "or FILE.py:CLASS"
        )
    return BONUSES[name]
