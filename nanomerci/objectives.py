"""Objectives, one row each, picked by `--algo`: how rewards become advantages, and how per-token
losses become one number. The formulas are in grpo.py, dapo.py and nanomerci/advantages.py.

A new objective is a function and a row here, or an Objective in a file of yours (`--algo
FILE.py:NAME`). `advantage` takes reward_PG; with reads_outcomes also outcome_PG, equal numbers for
equal final answers; and, as keywords, the options that its row names.
"""

from collections.abc import Callable
from typing import NamedTuple

from nanomerci import advantages, dapo, grpo
from nanomerci.runtime.plugins import named


class Objective(NamedTuple):
    advantage: Callable = grpo.advantage
    """reward_PG -> adv_PG"""
    options: tuple = ()
    """Options of train.py that advantage takes."""
    reads_outcomes: bool = False
    surrogate: Callable = grpo.surrogate
    """logp_BT, logp_old_BT, adv, clip_low, clip_high -> loss_BT"""
    units: Callable = grpo.units
    """mask_BT -> what this rank adds to the loss denominator"""
    weights: Callable = grpo.weights
    """mask_BT, denominator over all ranks -> weights_BT; with constant_length also max_new_tokens
    """
    constant_length: bool = False
    clip_high: float = 0.2
    """The default of --clip_high."""
    max_gen_rounds: int = 1
    """The default of --max_gen_rounds; above 1: dynamic sampling."""
    about: str = ""
    """For --list."""

    def weigh(self, mask_BT, total, length):
        """Weight of each token's loss. length: --max_new_tokens."""
        if self.constant_length:
            return self.weights(mask_BT, total, length)
        return self.weights(mask_BT, total)


OBJECTIVES = {
    "grpo": Objective(about="GRPO (DeepSeekMath, 2402.03300)"),
    "dapo": Objective(
        units=dapo.units,
        weights=dapo.weights,
        clip_high=0.28,
        max_gen_rounds=10,
        about="DAPO (2503.14476): token-level weights, clip-higher, dynamic sampling",
    ),
    "dr_grpo": Objective(
        grpo.centred,
        weights=grpo.weights_constant,
        constant_length=True,
        about="Dr.GRPO (2503.20783): GRPO without std and length normalisation",
    ),
    "maxrl": Objective(advantages.over_mean, about="MaxRL (2602.02710): (r - mean) / mean"),
    "passk": Objective(
        advantages.pass_at_k, ("pass_k",), about="Pass@k training (2508.10751): best of --pass_k"
    ),
    "ips": Objective(
        advantages.over_frequency, (), True, about="IPS-GRPO (2601.21669): r / share of the answer"
    ),
}


def find(name):
    """--algo -> the Objective of that name, or FILE.py:NAME."""

    def fits(objective):
        return isinstance(objective, Objective)

    wanted = "a nanomerci.objectives.Objective"
    return named(name, "algo", OBJECTIVES, fits, wanted, "FILE.py:NAME")
