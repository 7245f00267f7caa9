"""How rare may the better strategy be at the start and still spread? Where does the bonus decide?

    python -m nanomerci.lab.compare toy_sql_short --arms phase --warm_starts 2 --seeds 4 --out RUNS
    python -m nanomerci.lab.phase RUNS/results.csv --out docs/pictures

An arm ends in `:rare_share=S`, the share of the demonstrations that use the rare idiom.
Two contrasts are tested, pooled over start frequencies: grpo+cfn against grpo where the idiom is
rare and where it is common.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import tyro

from nanomerci.lab import stats
from nanomerci.runtime.config import UserError, run_command
from nanomerci.view import report

SHOWN = {"rare": "share of the rare idiom at the end", "pass@8": "pass@8 at the end"}
LINES = {  # with MERCI orange, without blue; MaxRL dashed
    "grpo": (report.BLUE, "-"),
    "grpo+cfn": (report.ORANGE, "-"),
    "grpo+surprisal": ("#555555", ":"),
    "maxrl": (report.BLUE, "--"),
    "maxrl+cfn": (report.ORANGE, "--"),
}
RARE, COMMON = "start at most 2 %", "start at least 16 %"


def rows_of(runs):
    """Runs of arms ARM:rare_share=S -> arm, warm_start: now S; seed: a warm start and its seed."""
    parts = runs["arm"].str.extract(r"(?P<arm>[^:]+):rare_share=(?P<start>[\d.]+)$")
    if parts.isna().any(axis=None) or not {*SHOWN} <= {*runs}:
        raise UserError(f"expected arms ARM:rare_share=S, and columns {', '.join(SHOWN)}")
    seed = runs["warm_start"].astype(str) + "-" + runs["seed"].astype(str)
    return runs.assign(arm=parts["arm"], warm_start=parts["start"].astype(float), seed=seed)


def tests(rows):
    """-> the differences of the two contrasts, corrected together."""
    start = rows["warm_start"]
    kinds = {RARE: rows[start <= 0.02], COMMON: rows[start >= 0.16]}
    named = [kind.assign(arm=kind["arm"] + ", " + name) for name, kind in kinds.items()]
    pairs = [(f"grpo+cfn, {name}", f"grpo, {name}") for name in kinds]
    return stats.differences(pd.concat(named), pairs, list(SHOWN))


def table(rows):
    """Mean share of the rare idiom and pass@8 of each arm at each start."""
    means = rows.groupby(["warm_start", "arm"], sort=False)[list(SHOWN)].mean()
    arms = rows["arm"].unique()
    lines = []
    for start in sorted(rows["warm_start"].unique()):
        values = [means.loc[start, arm] for arm in arms]
        lines.append([f"{start:.1%}", *(f"{v['rare']:.3f} / {v['pass@8']:.3f}" for v in values)])
    return stats.table(["start", *(f"{arm}: rare / pass@8" for arm in arms)], lines)


def picture(rows, path):
    """Final share and pass@8 over the start, with 95 % bootstrap bands over pairs."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(report.LOOK):
        figure = Figure(figsize=(11, 4), layout="constrained")
        for axes, (metric, title) in zip(figure.subplots(1, 2), SHOWN.items(), strict=True):
            for arm, mine in rows.groupby("arm", sort=False):
                colour, style = LINES.get(arm, ("#999999", "-"))
                by_start = mine.groupby("warm_start")[metric]
                ends = [stats.bootstrap(values.tolist()) for _, values in by_start]
                middle, (low, high) = by_start.mean(), np.transpose(ends)
                look = {"color": colour, "linestyle": style, "marker": "o", "markersize": 3}
                axes.plot(middle.index, middle, label=arm, **look)
                axes.fill_between(middle.index, low, high, color=colour, alpha=0.08, linewidth=0)
            axes.set_xscale("log")
            axes.set_xticks(sorted(rows["warm_start"].unique()))
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:.1%}")
            axes.minorticks_off()
            axes.set_xlabel("start frequency of the rare idiom in the demonstrations")
            axes.set_title(title, loc="left")
        axes.legend(frameon=False, fontsize=8)
        report.save(figure, path)


def main(csv: tyro.conf.Positional[Path], out: Path | None = None):
    """The table, the tests and the picture of a phase diagram on toy_sql.

    Args:
        csv: results.csv of nanomerci.lab.compare --arms phase
        out: folder for phase_toy_sql.png
    """
    _, runs, *_ = stats.read(csv)
    rows = rows_of(runs[runs["failed"].isna()])
    found = tests(rows)
    paired = stats.paired_table(found, "on each start")  # over which the pairs are pooled
    parts = [f"- {stats.conclusion(d)}" for d in found], table(rows), paired
    print("\n\n".join("\n".join(lines) for lines in parts))
    if out:
        picture(rows, out / "phase_toy_sql.png")


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, prog="python -m nanomerci.lab.phase"))
