"""What a comparison shows: paired differences with intervals and p-values, tables, curves, and the
conclusions in words.

    python -m nanomerci.lab.stats nanomerci/lab/experiments/toy_sql.csv     published, printed again
    python -m nanomerci.lab.stats runs/compare/results.csv --out runs/again     and picture and page

NAME.csv has a row per run: what the run was (RUN) and every number it reported. NAME_curves.csv, if
it is there, has a row per run and step. NAME_recorded.csv holds means of comparisons made before
curves were kept.

A pair is a warm start and a seed. Intervals are bootstrap intervals over pairs (or runs): they
speak for the warm starts that were used, not for others, so the difference on each warm start is
given too. A p-value is that of the sign-flip permutation test, corrected by Holm's method
for the number of differences in its table; the conclusion follows from it.

Axes: N pairs, R reassignments of signs, X places of a curve.
"""

import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import tyro

from nanomerci import tasks
from nanomerci.loop.evaluate import bootstrap
from nanomerci.runtime.config import UserError, run_command
from nanomerci.view import report

DRAWS = 10000  # of the bootstrap
LEVEL = 0.05  # when a difference counts
LATE = 5  # steps over which entropy and length are averaged
PRIMARY = ("mean@", "pass@")
KEY = ["arm", "warm_start", "seed"]
RUN = ["experiment", *KEY, "commit", "processor", "dtype", "task", "split", "problems", "failed"]
NO_NUMBER = [*RUN, "command"]
CURVES = ["reward/mean", "entropy", "length/mean", "groups/mixed", "merci/share"]
MEANING = {
    "mean@": "held-out accuracy of a response",
    "pass@": "held-out problems with a correct one among K responses, unbiased",
    "greedy": "accuracy of the greedy response",
    "coverage": "share of problems solved at least once",
    "distinct": "different correct responses (texts) per problem, of K",
    "rare": "share of held-out responses in the rare idiom",
    "hard": "mean accuracy on the hard problems",
    "entropy": f"nats per token, last {LATE} steps",
    "length": f"tokens, last {LATE} steps",
    "answers": "responses sampled in training",
    "steps": "training steps",
    "seconds": "training seconds, evaluations not counted",
}


# ---- from the files of the runs to rows
def collect(cells, failed):
    """-> a row per run, a row per run and step."""
    task = tasks.load(cells[0].c)
    runs, curves = [], []
    for cell in cells:
        key = dict(zip(KEY, (cell.arm, cell.warm, cell.seed), strict=True))
        row = dict.fromkeys(RUN) | key | cell.described
        if cell.finished:
            numbers, curve = measure(cell, task)
            row |= numbers
            curves.append(pd.DataFrame(key, curve.index).join(curve))
        else:
            row["failed"] = failed.get(cell.folder.name, f"{cell.folder.name}: not finished")
        runs.append(row)
    nothing = pd.DataFrame(columns=[*KEY, "answers"])
    return pd.DataFrame(runs), pd.concat(curves) if curves else nothing


def measure(cell, task):
    """A finished cell -> {metric: value} of its last and, named "before ...", its first evaluation;
    and its curve, a row per step.
    """
    rows, evals = cell.rows, report.read_lines(cell.folder / "evals.jsonl")
    before = held_out(rows[0], evals[0]["records"], cell.c.eval_k, task)
    value = held_out(rows[-1], evals[-1]["records"], cell.c.eval_k, task)
    primary = [name for name in value if name.startswith(PRIMARY)]
    log, times = pd.DataFrame(rows), ["prompts", "time/step", "time/eval", "time/pretrain"]
    prompts, whole, asked, pretrain = log.reindex(columns=times).fillna(0).to_numpy().T
    curve = log[["step"]].assign(answers=(prompts * cell.c.group).astype(int))
    curve["seconds"] = np.where(log["step"] > 0, whole - asked, pretrain).cumsum()
    shown = log.reindex(columns=[*(f"eval/{name}" for name in primary), *CURVES])
    curve = curve.join(shown.rename(columns=lambda name: name.removeprefix("eval/")))
    late, last = log[log["step"] > 0].tail(LATE), curve.iloc[-1]
    value |= {"entropy": late["entropy"].mean(), "length": late["length/mean"].mean()}
    value |= {"answers": int(last["answers"]), "steps": rows[-1]["step"]}
    value["seconds"] = float(last["seconds"])
    return value | {f"before {name}": number for name, number in before.items()}, curve


def held_out(row, records, k, task):
    """One evaluation, its summary and its responses -> {metric: value}."""
    names = [n for n in (f"mean@{k}", f"pass@{k}", "greedy") if f"eval/{n}" in row]
    value = {name: row[f"eval/{name}"] for name in names}
    value["coverage"] = row["eval/solved"] / row["eval/problems"]
    by_id, lists = {p.id: p for p in task.test}, {"distinct": [], "rare": [], "hard": []}
    for record in records:
        problem, texts = by_id[record["id"]], record["answers"]
        graded = zip(texts, record["outcomes"], strict=True)
        correct = [text.strip() for text, outcome in graded if outcome == "right"]
        lists["distinct"].append(len(set(correct)))
        if hasattr(task, "rare"):
            lists["rare"] += [task.rare(problem, text) for text in texts]
        if getattr(problem, "hard", False):
            lists["hard"].append(len(correct) / len(texts))
    return value | {name: float(np.mean(values)) for name, values in lists.items() if values}


# ---- files
def read(path):
    """NAME.csv -> command, runs; and from beside it curves, recorded (None without such a file)."""
    path = Path(path)
    try:
        with open(path) as file:
            command = file.readline().removeprefix("# ").strip()
            runs = pd.read_csv(file)
        if missing := {*KEY, "failed"} - set(runs):
            raise ValueError(f"no column {min(missing)}")
    except (OSError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"{path}: is no table of runs ({why}); expected a results.csv") from None
    beside = [path.with_name(f"{path.stem}_{kind}.csv") for kind in ("curves", "recorded")]
    texts = dict.fromkeys(("arm", "base", "by_warm_start"), str)  # where a file has them
    return command, runs, *(pd.read_csv(p, dtype=texts) if p.exists() else None for p in beside)


def write(out, command, runs, curves):
    """Write results.csv and results_curves.csv, and from them all that show() writes."""
    report.write(out / "results.csv", f"# {command}\n{runs.to_csv(index=False)}")
    report.write(out / "results_curves.csv", curves.to_csv(index=False))
    return show(out / "results.csv", out)


# ---- statistics
def sign_flip(d_N, draws=20000):
    """Two-sided p of a mean paired difference: how often is it as large when every pair's sign is a
    coin's? Exact up to 14 pairs.
    """
    d_N = np.asarray(d_N, dtype=float)
    if exact := len(d_N) <= 14:
        sign_RN = np.array(list(itertools.product((1, -1), repeat=len(d_N))))
    else:
        sign_RN = np.random.default_rng(0).choice((1, -1), (draws, len(d_N)))
    hits = int((np.abs(sign_RN @ d_N) >= abs(d_N.sum()) - 1e-9).sum())
    return hits / len(sign_RN) if exact else (hits + 1) / (draws + 1)


def holm(p_values):
    """Corrected so that among all true null hypotheses the chance of one false alarm is at most the
    level (Holm 1979).
    """
    p_N = np.array(p_values)
    order_N = p_N.argsort()
    times_N = len(p_N) - np.arange(len(p_N))
    p_N[order_N] = np.maximum.accumulate(np.minimum(1, times_N * p_N[order_N]))
    return p_N.tolist()


def differences(runs, contrasts, metrics):
    """For each contrast and metric the mean paired difference, interval and p; a run without its
    partner is left out.
    """
    wide, found = runs.pivot(index=["warm_start", "seed"], columns="arm", values=metrics), []
    for (arm, base), metric in itertools.product(contrasts, metrics):
        d = (wide[metric, arm] - wide[metric, base]).dropna()
        if d.empty:
            continue
        low, high = bootstrap(d.tolist(), DRAWS)
        row = {"arm": arm, "base": base, "metric": metric, "mean": float(np.mean(d.tolist()))}
        row |= {"low": low, "high": high, "pairs": len(d), "p": sign_flip(d)}
        row["by_warm_start"] = d.groupby("warm_start").mean().tolist()
        found.append(row)
    for d, corrected in zip(found, holm([d["p"] for d in found]), strict=True):
        d["p_holm"] = corrected
    return found


def conclusion(d):
    """A difference in words."""
    p_values = f"p {d['p']:.2g}, corrected {d['p_holm']:.2g}"
    numbers = f"in {d['metric']}: {' '.join(signed(d))}, {d['pairs']} pairs, {p_values}."
    if d["p_holm"] < LEVEL:
        return f"{d['arm']} is {'above' if d['mean'] > 0 else 'below'} {d['base']} {numbers}"
    if 2 / 2 ** d["pairs"] >= LEVEL:
        numbers = numbers.replace(":", " (so few pairs cannot show one):", 1)
    return f"no significant difference between {d['arm']} and {d['base']} {numbers}"


def signed(d):
    return f"{d['mean']:+.3f}", f"[{d['low']:+.3f}, {d['high']:+.3f}]"


def summary(rows, metrics):
    """-> {metric: [mean, low, high]} of those that every run has."""
    known = {name: rows[name].tolist() for name in metrics if rows[name].notna().all()}
    return {name: [float(np.mean(values)), *bootstrap(values)] for name, values in known.items()}


def by_arm(runs, metrics):
    return {arm: summary(rows, metrics) for arm, rows in runs.groupby("arm", sort=False)}


def at_seconds(curves, seconds, metrics):
    """The metrics of each run after so many seconds, on straight lines between its evaluations."""
    rows = []
    for key, run in curves.dropna(subset=metrics).groupby(KEY, sort=False):
        row = dict(zip(KEY, key, strict=True))
        rows.append(row | {m: np.interp(seconds, run["seconds"], run[m]) for m in metrics})
    return pd.DataFrame(rows)


def band(runs, grid_X):
    """Curves [(x, y)] -> mean and 95 % bootstrap band on a grid; nan where a run has ended."""
    at_NX = torch.tensor(np.array([np.interp(grid_X, x, y, right=np.nan) for x, y in runs]))
    draw = torch.randint(len(runs), (1000, len(runs)), generator=torch.Generator().manual_seed(0))
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low_X, high_X = at_NX[draw].mean(1).quantile(ends, 0)
    return {"y": at_NX.mean(0).tolist(), "low": low_X.tolist(), "high": high_X.tolist()}


def bands(curves, name):
    """One metric over the responses sampled in training, each arm's band."""
    known = curves.dropna(subset=[name])
    grid, arms = sorted(known["answers"].unique().tolist()), {}
    for arm, rows in known.groupby("arm", sort=False):
        runs = [(run["answers"], run[name]) for _, run in rows.groupby(KEY, sort=False)]
        arms[arm] = band(runs, grid)
    return {"x": grid, "arms": arms}


# ---- everything the files say, as plain data
def pairs(text, arms):
    """--contrasts, ARM/ARM with commas -> [(arm, base)]; without, every arm with the first."""
    if not text:
        return [(arm, arms[0]) for arm in arms[1:]]
    return [tuple(pair.split("/")) for pair in text.split(",")]


def results(command, runs, curves=None, recorded=None):
    arms = runs["arm"].unique().tolist()
    named = re.search(r"--contrasts[ =](\S+)", command)
    contrasts = pairs(named[1] if named else "", arms)
    done = runs[runs["failed"].isna()]
    arms = [arm for arm in arms if (done["arm"] == arm).any()]
    contrasts = [pair for pair in contrasts if set(pair) <= set(arms)]
    metrics = [n for n in runs if arms and n not in NO_NUMBER and not n.startswith("before ")]
    primary = [name for name in metrics if name.startswith(PRIMARY)]
    starts = done.set_index(["arm", "warm_start", "seed"]).filter(regex="^before ")
    before = starts.rename(columns=lambda name: name.removeprefix("before "))
    asked = re.search(r"--tested[ =](\S+)", command)
    tested = asked[1].split(",") if asked else primary
    found = differences(done, contrasts, tested) if arms else []
    first = runs.iloc[0]
    r = {
        "command": command,
        **{name: first[name] for name in ("task", "split")},
        "problems": int(first["problems"]),
        "arms": arms,
        "primary": primary,
        "tested": tested,
        "runs": sorted(done["arm"].value_counts().unique().tolist()),
        "failed": runs["failed"].dropna().tolist(),
        "same_start": bool((starts.groupby(level=[1, 2]).nunique() <= 1).all(axis=None)),
        "meaning": MEANING,
        "before": summary(before.loc[arms[0]], before) if arms else {},
        "table": by_arm(done, metrics),
        "differences": found,
        "conclusions": [conclusion(d) for d in found],
        "cells": done.to_dict("records"),
        "curves": {},
        "table_seconds": {},
        "differences_seconds": [],
    }
    r["seconds"] = min((table["seconds"][0] for table in r["table"].values()), default=0.0)
    if recorded is not None:
        return r | as_recorded(recorded)
    if arms and curves is not None:
        r["curves"] = {n: bands(curves, n) for n in (*primary, *CURVES) if curves[n].notna().any()}
        # a straight line from the first evaluation to the last one says nothing of the time between
        if curves.dropna(subset=primary).groupby(KEY).size().min() > 2:
            timed = at_seconds(curves, r["seconds"], primary)
            r["table_seconds"] = by_arm(timed, primary)
            r["differences_seconds"] = differences(timed, contrasts, primary)
    return r


def as_recorded(rows):
    """What is known of a comparison only as means: before the first step, and at equal seconds."""
    paired = rows[rows["base"].notna()].astype({"pairs": int}).to_dict("records")
    for d in paired:
        d["by_warm_start"] = list(map(float, d["by_warm_start"].split()))
    tables = {}
    for row in rows[rows["base"].isna()].fillna({"arm": ""}).itertuples():
        tables.setdefault(row.arm, {})[row.metric] = [row.mean, row.low, row.high]
    before = tables.pop("")  # no arm: all start alike
    return {"before": before, "table_seconds": tables, "differences_seconds": paired}


# ---- for the reader
def notes(r):
    """How the numbers were made, in sentences."""
    said = [
        f"{r['task']}, {r['problems']} held-out problems of the {r['split']} split, runs an "
        f"arm: {', '.join(map(str, r['runs']))}. "
        "Brackets: 95 % bootstrap intervals over runs or pairs; they speak for the warm starts "
        "that were used.",
        "p: two-sided sign-flip permutation test of the paired differences; corrected: Holm, "
        "over all differences of the table.",
    ]
    if r["table_seconds"]:
        said.append(
            f"Equal seconds: at {r['seconds']:.1f} s of training, when the fastest arm ends on "
            "average; evaluations are not counted, and between two evaluations a run's value is "
            "interpolated."
        )
    if not r["same_start"]:
        said.append(
            "The arms of a pair did not start from the same evaluation: their options differ "
            "in more than training."
        )
    if failed := r["failed"]:
        said.append(f"{len(failed)} runs are not finished and not counted. {' '.join(failed)}")
    return said


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(map(str, cells)) + " |" for cells in lines]


def shown(name, value):
    if value is None:
        return ""
    middle, low, high = value
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]" if name.startswith(PRIMARY) else f"{middle:.4g}"


def arms_table(arms, start=None):
    names = list(next(iter(arms.values()), {}))
    arms = ({"before": start} if start else {}) | arms
    rows = [[arm, *(shown(name, v.get(name)) for name in names)] for arm, v in arms.items()]
    return table(["arm", *names], rows)


def paired_table(found, last="on each warm start"):
    rows = []
    for d in found:
        p_values = f"{d['p']:.2g}", f"{d['p_holm']:.2g}"
        each = ", ".join(f"{value:+.3f}" for value in d["by_warm_start"])
        rows.append([f"{d['arm']} - {d['base']}", d["metric"], *signed(d), *p_values, each])
    head = ["difference", "in", "mean", "95 %", "p", "corrected", last]
    return table(head, rows)


def markdown(r):
    parts = [
        [f"`{r['command']}`"],
        [f"- {line}" for line in r["conclusions"]],
        ["After equal samples:"],
        arms_table(r["table"], r["before"]),
        paired_table(r["differences"]),
    ]
    if r["table_seconds"]:
        late = arms_table(r["table_seconds"]), paired_table(r["differences_seconds"])
        parts += [["After equal seconds:"], *late]
    parts.append(notes(r))
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def intervals(axes, title, metrics, rows):
    """Means with intervals, a line per label: {label: [(metric, [mean, low, high], sure)]}."""
    for i, values in enumerate(rows.values()):
        for metric, (middle, low, high), sure in values:
            number = metrics.index(metric)
            reach = np.clip([[middle - low], [high - middle]], 0, None)
            look = {"color": report.COLOURS[number], "capsize": 2, "marker": "o", "linestyle": ""}
            look |= {} if sure else {"mfc": "white"}
            y = 0.12 * (len(metrics) - 1) - 0.24 * number - i
            axes.errorbar(middle, y, xerr=reach, label=None if i else metric, **look)
    axes.set_yticks([-i for i in range(len(rows))], list(rows))
    axes.set_title(title, loc="left")


def picture(r, path):
    """Where each arm ends, and the differences with their intervals."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    ends, paired = {}, {}
    for arm, values in r["table"].items():
        ends[arm] = [(name, values[name], True) for name in r["tested"]]
    for d in r["differences"]:
        value = d["metric"], (d["mean"], d["low"], d["high"]), d["p_holm"] < LEVEL
        paired.setdefault(f"{d['arm']} - {d['base']}", []).append(value)
    with rc_context(report.LOOK):
        height = max(4.0, 1.6 + 0.3 * max(len(ends), len(paired)))
        figure = Figure(figsize=(13, height), layout="constrained")
        left, *right = figure.subplots(1, 1 + bool(paired), squeeze=False)[0]
        title = f"{r['task']}, after equally many responses; bars: 95 %; dashed: before RL"
        intervals(left, title, r["tested"], ends)
        for name, colour in zip(r["tested"], report.COLOURS, strict=False):
            if name in r["before"]:
                left.axvline(r["before"][name][0], color=colour, linestyle="--", linewidth=1)
        named = left.get_legend_handles_labels()
        figure.legend(*named, loc="outside lower center", ncols=len(r["tested"]), frameon=False)
        for axes in right:
            title = "paired differences; filled: p < 0.05 (Holm)"
            intervals(axes, title, r["tested"], paired)
            axes.axvline(0, color="0.4", linewidth=1)
        report.save(figure, path)


def show(path, out=None):
    """A table of runs -> the text of results.md; that, compare.png and compare.html go to `out`."""
    r = results(*read(path))
    text = markdown(r)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        report.write(out / "results.md", text)
        if r["arms"]:
            picture(r, out / "compare.png")
        data = r | {"name": out.name, "notes": notes(r)}
        report.write(out / "compare.html", report.page("compare", f"nanoMERCI: {out.name}", data))
    return text


def main(csv: tyro.conf.Positional[Path], out: Path | None = None):
    """Tables and conclusions of a comparison.

    Args:
        csv: a row per run, as nanomerci.lab.compare writes it
        out: folder for results.md, compare.png and compare.html
    """
    print(show(csv, out), end="")


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, prog="python -m nanomerci.lab.stats"))
