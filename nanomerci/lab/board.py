"""A bonus or an objective of your own against GRPO and GRPO + MERCI, on the registered settings.

    python -m nanomerci.lab.board grpo+first_use.py:FirstUse
    python -m nanomerci.lab.board best_only.py:best_only --seeds 4
    python -m nanomerci.lab.board --csv nanomerci/lab/experiments/benchmark.csv    recorded lines

It says how long it will take, runs the three arms in pairs (the same command resumes after an
interruption), and prints the method's line: paired differences with intervals, cost, commit,
processor. docs/your-own.md has the two files, docs/board.md the lines so far.
"""

import os
import re
import sys
from pathlib import Path

import tyro

from nanomerci import bonuses, objectives
from nanomerci.lab import compare, stats
from nanomerci.runtime.config import UserError, run_command
from nanomerci.runtime.log import log0

RECORD = Path(__file__).parent / "experiments/benchmark.csv"  # how long a run took there
METRICS = ["pass@8", "hard", "mean@8"]
AGAINST_OURS = "pass@8 − GRPO + CFN"
HEAD = ["method", "paper", "pairs", *(f"{m} − GRPO" for m in METRICS), AGAINST_OURS]
HEAD += ["seconds per response, GRPO = 1", "commit", "processor"]


def paper(arm):
    """The arXiv numbers that the bonus or the objective names."""
    _, algo, _, name, *_ = compare.options(arm)
    bonus = bonuses.find(name)
    module = sys.modules[bonus.__module__].__doc__ or ""
    text = f"{objectives.find(algo).about} {bonus.__doc__ or ''} {module}"
    return ", ".join(dict.fromkeys(re.findall(r"\b\d{4}\.\d{5}\b", text))) or "none named"


def line(runs, arm):
    """The method's row: paired differences with intervals, cost, commit, processor."""
    own = runs[runs["arm"] == arm]
    found = stats.differences(runs, [(arm, "grpo")], METRICS)
    found += stats.differences(runs, [(arm, "grpo+cfn")], METRICS[:1])
    pace = runs.assign(pace=runs["seconds"] / runs["answers"]).groupby("arm")["pace"].median()
    commits, processors = (", ".join(map(str, own[n].unique())) for n in ("commit", "processor"))
    cost = f"{pace[arm] / pace['grpo']:.2f}"
    shown = [" ".join(stats.signed(d)) for d in found]
    return [f"`{arm}`", paper(arm), found[0]["pairs"], *shown, cost, commits, processors]


def recorded(csv):
    """The lines of all methods of a comparison."""
    _, runs, *_ = stats.read(csv)
    runs = runs[runs["failed"].isna()]
    if not {"grpo", "grpo+cfn"} <= {*runs["arm"]} or not {*METRICS} <= {*runs}:
        raise UserError(f"{csv}: expected runs of grpo and grpo+cfn, with {', '.join(METRICS)}")
    arms = [arm for arm in runs["arm"].unique() if arm != "grpo"]
    lines = [line(runs, arm) for arm in arms]
    lines[arms.index("grpo+cfn")][HEAD.index(AGAINST_OURS)] = ""
    return stats.table(HEAD, lines)


def main(
    arm: tyro.conf.Positional[str] = "",
    seeds: int = 10,
    warm_starts: int = 3,
    out: Path = Path("runs/board"),
    csv: Path | None = None,
):
    """A method against GRPO and GRPO + MERCI in pairs; prints one line of a table.

    Args:
        arm: ALGO[+BONUS][:option=value ...], names or FILE.py:NAME
        seeds: per warm start
        warm_starts: initial tiny models
        out: folder of the runs
        csv: print the lines of these recorded runs, and run nothing
    """
    if csv:
        return print("\n".join(recorded(csv)))
    if not arm:
        raise UserError("board: expected an arm, such as grpo+first_use.py:FirstUse, or --csv FILE")
    words = f"toy_sql_short --arms grpo,grpo+cfn,{arm} --eval_every 0 --tested {','.join(METRICS)}"
    words += f" --warm_starts {warm_starts} --seeds {seeds} --out {out}"
    a, rest = compare.arguments(words.split())
    todo = sum(not cell.finished for cell in compare.plan(a, rest))
    seconds = stats.read(RECORD)[1]["seconds"].median() * todo / len(os.sched_getaffinity(0))
    log0(f"{todo} runs: about {seconds / 60:.0f} minutes and their evaluations, by the record")
    compare.main(words.split())
    _, runs, *_ = stats.read(out / "results.csv")
    print("\n".join(stats.table(HEAD, [line(runs[runs["failed"].isna()], arm)])))


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, prog="python -m nanomerci.lab.board"))
