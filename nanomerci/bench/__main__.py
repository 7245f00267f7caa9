"""Speed, each against what was equal.

    python -m nanomerci.bench graders --seconds 10 --workers 2
    python -m nanomerci.bench sampler --shape smollm2-135m --rows 32
    python -m nanomerci.bench step --bonus none             (--help: all options and their defaults)
    python -m nanomerci.bench gpu                           all there is to see on a GPU

A benchmark is a module with run(options), which prints its table and says what was equal.
"""

import argparse
from math import inf

from nanomerci.bench import gpu, graders, sampler, step
from nanomerci.runtime.config import run_command

BENCHES = {"graders": graders, "sampler": sampler, "step": step, "gpu": gpu}
OPTIONS = {  # option: (the default, or the choices and the default first; meaning)
    "seconds": (10.0, "graders: seconds per stream, at least"),
    "workers": (2, "graders: processes"),
    "grade_timeout": (2.0, "graders: seconds per response, at most"),
    "rows": (128, "sampler, step: rows, P x G"),
    "group": (8, "sampler, step: G"),
    "length": (48, "sampler, step: new tokens at most"),
    "rounds": (5, "sampler: rounds in turn"),
    "steps": (12, "step: steps that count"),
    "shape": ([*sampler.SHAPES], "sampler: the model's shape, random weights"),
    "dtype": (["float32", "bfloat16"], "sampler: of the weights"),
    "compiled": (["no", "yes"], "sampler: also generate with a static cache, compiled (minutes)"),
    "bonus": (["cfn", "none"], "step: ours with or without the counter"),
    "cfn_features": (["frozen", "policy"], "step: as in train.py"),
}


def positive(kind):
    """kind(word), refused where it is not above 0."""

    def read(word):
        value = kind(word)
        if not 0 < value < inf:
            raise argparse.ArgumentTypeError(f"{word}: expected a number above 0")
        return value

    return read


def main():
    p = argparse.ArgumentParser(
        prog="python -m nanomerci.bench", description=__doc__.split("\n")[0]
    )
    about = ", ".join(f"{name}: {bench.__doc__}" for name, bench in BENCHES.items())
    p.add_argument("bench", choices=BENCHES, help=about)
    for name, (values, meaning) in OPTIONS.items():
        choices = values if isinstance(values, list) else None
        default = choices[0] if choices else values
        read = str if choices else positive(type(default))
        how = {"type": read, "choices": choices, "default": default}
        p.add_argument(f"--{name}", help=f"{meaning} (default {default})", **how)
    o = p.parse_args()
    BENCHES[o.bench].run(o)


if __name__ == "__main__":
    run_command(main)
