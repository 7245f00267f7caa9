"""What a comparison of arms shows: paired differences with intervals and p-values, a table, curves,
and the verdict in words.

    results.json   everything, the numbers of each run included        results.md     the tables and the verdict
    compare.html   the same to look at, with curves                    compare.png    curves and differences as one picture

A pair is a warm start and a seed. Intervals are bootstrap intervals over pairs (or runs): they
speak for the warm starts that were used, not for others, so the difference on each warm start
stands beside them. A p-value is that of the sign-flip permutation test, corrected by Holm's method
for the number of differences in its table; the verdict follows from it.

Axes: N pairs, R reassignments of signs, X places of a curve.
"""

import itertools
import json
import shlex

import numpy as np
import torch

from nanomerci import tasks
from nanomerci.loop.evaluate import bootstrap
from nanomerci.loop.warmstart import cache_folder
from nanomerci.view import report

DRAWS, LEVEL, LATE = (
    10000,
    0.05,
    5,
)  # bootstrap draws; when a difference counts; steps over which entropy and length are averaged
PRIMARY = ("mean@", "pass@")
MEANING = {
    "mean@": "held-out accuracy of a sample",
    "pass@": "held-out problems with a right one among K samples, unbiased",
    "greedy": "accuracy of the greedy answer",
    "coverage": "share of problems solved at least once",
    "distinct": "different right answers (texts) a problem, of K samples",
    "rare": "share of held-out answers in the rare idiom",
    "hard": "mean accuracy on the hard problems",
    "entropy": f"nats a token, last {LATE} steps",
    "length": f"tokens, last {LATE} steps",
    "answers": "answers sampled in training",
    "steps": "training steps",
    "seconds": "training seconds, evaluations not counted",
}


def measure(cell, problems):
    """A finished cell -> {metric: value} before its first and after its last step, curves {metric:
    (answers sampled, values)}, and the primary metrics over time {metric: (seconds, values)}.
    """
    c, rows, answers = cell.c, cell.rows, report.read_lines(cell.folder / "evals.jsonl")
    last, late = rows[-1], [row for row in rows[-LATE:] if row["step"]]
    evaluated = [row for row in rows if "eval/problems" in row]
    before, value = (
        held_out(row, kept["records"], c.eval_k, *problems)
        for row, kept in ((rows[0], answers[0]), (last, answers[-1]))
    )
    value |= {
        name: float(np.mean([row[key] for row in late]))
        for name, key in (("entropy", "entropy"), ("length", "length/mean"))
    }
    spent = np.cumsum(
        [
            row.get("time/step", 0) - row.get("time/eval", 0)
            if row["step"]
            else row.get("time/pretrain", 0)
            for row in rows
        ]
    )
    value |= {
        "answers": last["prompts"] * c.group,
        "steps": last["step"],
        "seconds": float(spent[-1]),
    }
    sampled = lambda row: row.get("prompts", 0) * c.group
    curves = {
        name: ([sampled(r) for r in evaluated], [r[f"eval/{name}"] for r in evaluated])
        for name in value
        if name.startswith(PRIMARY)
    }
    for name in ("reward/mean", "entropy", "length/mean", "groups/mixed", "merci/share"):
        curves[name] = [sampled(row) for row in rows[1:]], [row[name] for row in rows[1:]]
    seconds = {row["step"]: time for row, time in zip(rows, spent)}
    clock = {
        name: ([seconds[r["step"]] for r in evaluated], curves[name][1])
        for name in value
        if name.startswith(PRIMARY)
    }
    return before, value, curves, clock


def held_out(row, records, k, task, by_id):
    """One evaluation, its summary and its answers -> {metric: value}."""
    value = {
        name: row[f"eval/{name}"]
        for name in (f"mean@{k}", f"pass@{k}", "greedy")
        if f"eval/{name}" in row
    }
    value["coverage"] = row["eval/solved"] / row["eval/problems"]
    right = [
        [text.strip() for text, outcome in zip(r["answers"], r["outcomes"]) if outcome == "right"]
        for r in records
    ]
    value["distinct"], asked = (
        float(np.mean([len(set(texts)) for texts in right])),
        [by_id[r["id"]] for r in records],
    )
    if hasattr(task, "rare"):
        value["rare"] = float(
            np.mean([task.rare(p, text) for p, r in zip(asked, records) for text in r["answers"]])
        )
    hard = [
        len(texts) / len(r["answers"])
        for p, r, texts in zip(asked, records, right)
        if getattr(p, "hard", False)
    ]
    return value | ({"hard": float(np.mean(hard))} if hard else {})


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
    order, out, worst = np.argsort(p_values), [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        out[i] = worst
    return out


def differences(values, contrasts, metrics):
    """values: {arm: {pair: {metric: value}}} -> for each contrast and metric the mean paired
    difference, interval and p.
    """
    found = []
    for (arm, base), metric in itertools.product(contrasts, metrics):
        pairs = sorted(set(values[arm]) & set(values[base]))
        d_N = [values[arm][pair][metric] - values[base][pair][metric] for pair in pairs]
        if d_N:
            low, high = bootstrap(d_N, DRAWS)
            warm = {
                w: float(np.mean([d for d, (of, _) in zip(d_N, pairs) if of == w]))
                for w in sorted({w for w, _ in pairs})
            }
            found.append(
                {
                    "arm": arm,
                    "base": base,
                    "metric": metric,
                    "difference": float(np.mean(d_N)),
                    "low": low,
                    "high": high,
                    "p": sign_flip(d_N),
                    "pairs": len(d_N),
                    "by_warm_start": warm,
                }
            )
    for d, corrected in zip(found, holm([d["p"] for d in found])):
        d["p_holm"] = corrected
    return found


def verdict(d):
    """A difference in words."""
    numbers = f"{d['difference']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}], {d['pairs']} pairs, p {d['p']:.2g}, corrected {d['p_holm']:.2g}"
    if d["p_holm"] < LEVEL:
        return f"{d['arm']} is {'above' if d['difference'] > 0 else 'below'} {d['base']} in {d['metric']}: {numbers}."
    few = " (so few pairs cannot show one)" if 2 / 2 ** d["pairs"] >= LEVEL else ""
    return f"no significant difference between {d['arm']} and {d['base']} in {d['metric']}{few}: {numbers}."


def band(curves, grid_X):
    """Curves of several runs -> mean and 95 % bootstrap band over the runs on a common grid; None
    where a run has ended.
    """
    at_NX = torch.tensor(np.array([np.interp(grid_X, x, y, right=np.nan) for x, y in curves]))
    draw = torch.randint(
        len(curves), (1000, len(curves)), generator=torch.Generator().manual_seed(0)
    )
    low_X, high_X = (
        at_NX[draw].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), 0)
    )
    return {"y": at_NX.mean(0).tolist(), "low": low_X.tolist(), "high": high_X.tolist()}


def results(command, arms, contrasts, cells, failed):
    """Everything the files say, as plain data."""
    c, task = cells[0].c, tasks.load(cells[0].c, cache_folder())
    problems = task, {p.id: p for p in task.test}
    measured = {
        (cell.arm, cell.warm, cell.seed): measure(cell, problems) for cell in cells if cell.finished
    }
    arms = [arm for arm in arms if any(arm == of for of, *_ in measured)]
    contrasts = [pair for pair in contrasts if set(pair) <= set(arms)]
    of = lambda arm, i: {
        pair: m[i]
        for (name, *pair), m in ((k, v) for k, v in measured.items())
        for pair in [tuple(pair)]
        if name == arm
    }
    before, values, curve, clock = ({arm: of(arm, i) for arm in arms} for i in range(4))
    metrics = list(next(iter(measured.values()))[1]) if measured else []
    primary = [name for name in metrics if name.startswith(PRIMARY)]
    summary = lambda runs: {
        name: [
            float(np.mean([run[name] for run in runs.values()])),
            *bootstrap([run[name] for run in runs.values()]),
        ]
        for name in metrics
        if all(name in run for run in runs.values())
    }
    table = {arm: summary(values[arm]) for arm in arms}
    seconds = min((table[arm]["seconds"][0] for arm in arms), default=0.0)
    at = lambda run: {name: float(np.interp(seconds, *run[name])) for name in primary}
    timed = {arm: {pair: at(run) for pair, run in clock[arm].items()} for arm in arms}
    starts = {}
    for (_, *pair), m in measured.items():
        starts.setdefault(tuple(pair), []).append(m[0])
    curves = {}
    for name in next(iter(measured.values()))[2] if measured else ():
        runs = {arm: [run[name] for run in curve[arm].values()] for arm in arms}
        grid = sorted({x for some in runs.values() for x in some[0][0]})
        curves[name] = {"x": grid, "arms": {arm: band(some, grid) for arm, some in runs.items()}}
    found = differences(values, contrasts, primary)
    return {
        "command": command,
        "task": c.task,
        "split": c.eval_split,
        "problems": c.eval_problems,
        "eval_every": c.eval_every,
        "arms": arms,
        "primary": primary,
        "runs": {arm: len(values[arm]) for arm in arms},
        "failed": failed,
        "unfinished": len(cells) - len(measured),
        "same_start": all(start == some[0] for some in starts.values() for start in some),
        "meaning": MEANING,
        "before": summary(before[arms[0]]) if arms else {},
        "table": table,
        "curves": curves,
        "differences": found,
        "verdict": [verdict(d) for d in found],
        "seconds": seconds,
        "table_seconds": {arm: summary(timed[arm]) for arm in arms},
        "differences_seconds": differences(timed, contrasts, primary),
        "cells": [
            {
                "arm": cell.arm,
                "warm_start": cell.warm,
                "seed": cell.seed,
                "command": shlex.join(["python", "train.py", *cell.argv]),
                **measured[cell.arm, cell.warm, cell.seed][1],
            }
            for cell in cells
            if cell.finished
        ],
    }


# ---- for the reader
def notes(r):
    """How the numbers were made, in sentences."""
    pairs = sorted(set(r["runs"].values()))
    said = [
        f"{r['task']}, {r['problems']} held-out problems of the {r['split']} split, runs an "
        f"arm: {', '.join(map(str, pairs))}. "
        "Brackets: 95 % bootstrap intervals over runs or pairs; they speak for the warm starts "
        "that were used.",
        "p: two-sided sign-flip permutation test of the paired differences; corrected: Holm, "
        "over all differences of the table.",
        f"Equal seconds: at {r['seconds']:.1f} s of training, when the fastest arm ends on "
        "average; evaluations are not counted, and "
        "between two evaluations a run's value is interpolated.",
    ]
    if not r["same_start"]:
        said.append(
            "The arms of a pair did not start from the same evaluation: their options differ "
            "in more than training."
        )
    if r["unfinished"]:
        said.append(
            f"{r['unfinished']} runs are not finished and not counted. " + " ".join(r["failed"])
        )
    return said


def shown(name, value):
    middle, low, high = value
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]" if name.startswith(PRIMARY) else f"{middle:.4g}"


def markdown(r):
    row = lambda cells: "| " + " | ".join(map(str, cells)) + " |"

    def table(arms):
        names = list(next(iter(arms.values()), {}))
        start = {"before": r["before"]} if "answers" in names else {}
        lines = [
            [arm, *(shown(n, value[n]) if n in value else "" for n in names)]
            for arm, value in {**start, **arms}.items()
        ]
        return [row(["arm", *names]), row(["---"] * (len(names) + 1)), *map(row, lines)]

    def paired(found):
        lines = [
            row(["difference", "in", "mean", "95 %", "p", "corrected", "on each warm start"]),
            row(["---"] * 7),
        ]
        for d in found:
            each = ", ".join(f"{value:+.3f}" for value in d["by_warm_start"].values())
            lines.append(
                row(
                    [
                        f"{d['arm']} - {d['base']}",
                        d["metric"],
                        f"{d['difference']:+.3f}",
                        f"[{d['low']:+.3f}, {d['high']:+.3f}]",
                        f"{d['p']:.2g}",
                        f"{d['p_holm']:.2g}",
                        each,
                    ]
                )
            )
        return lines

    parts = [
        [f"`{r['command']}`"],
        [f"- {line}" for line in r["verdict"]],
        ["After equal samples:"],
        table(r["table"]),
        paired(r["differences"]),
        ["After equal seconds:"],
        table(r["table_seconds"]),
        paired(r["differences_seconds"]),
        notes(r),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def over_samples(r, axes):
    """Held-out accuracy of each arm as it was evaluated between its steps."""
    from matplotlib import colormaps

    colours = colormaps["tab20" if len(r["arms"]) > 10 else "tab10"]
    for name, style in zip(r["primary"], ("-", "--")):
        x = r["curves"][name]["x"]
        for arm, line in r["curves"][name]["arms"].items():
            y, low, high = (
                np.array(line[part], dtype=float) for part in ("y", "low", "high")
            )  # nan where all runs have ended
            colour = colours(r["arms"].index(arm))
            axes.plot(x, y, style, color=colour, label=arm if style == "-" else None)
            axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_title(
        f"{r['task']}, held out: {' (solid) and '.join(r['primary'])} (dashed), 95 % bands",
        loc="left",
    )
    axes.set_xlabel("answers sampled in training")
    axes.legend(frameon=False, fontsize=7)


def ends(r, axes):
    """The same where it was evaluated only before and after: where each arm ended; dashed: before
    its first step.
    """
    for name, colour, shift in zip(r["primary"], (report.BLUE, report.ORANGE), (0.12, -0.12)):
        middle_3A = np.array([r["table"][arm][name] for arm in r["arms"]]).T
        reach = np.maximum(0, [middle_3A[0] - middle_3A[1], middle_3A[2] - middle_3A[0]])
        y_A = shift - np.arange(len(r["arms"]))
        axes.errorbar(
            middle_3A[0],
            y_A,
            xerr=reach,
            capsize=2,
            marker="o",
            linestyle="",
            color=colour,
            label=name,
        )
        axes.axvline(r["before"][name][0], color=colour, linestyle="--", linewidth=1)
    axes.set_yticks([-i for i in range(len(r["arms"]))], r["arms"])
    axes.set_title(f"{r['task']}, after equal samples, 95 %; dashed: before", loc="left")
    axes.legend(loc="lower left", frameon=False, fontsize=7)


def picture(r, path):
    """Held-out accuracy over the samples (or at the end), and the differences with their intervals."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    contrasts = list(dict.fromkeys((d["arm"], d["base"]) for d in r["differences"]))
    with rc_context(report.LOOK):
        rows = max(len(contrasts), 0 if r["eval_every"] else len(r["arms"]))
        figure = Figure(figsize=(13, max(4.0, 1.6 + 0.3 * rows)), layout="constrained")
        left, forest = (
            figure.subplots(1, 2, width_ratios=(1, 1)) if contrasts else (figure.subplots(), None)
        )
        (over_samples if r["eval_every"] else ends)(r, left)
        for i, d in enumerate(r["differences"]):
            y = (
                -contrasts.index((d["arm"], d["base"]))
                + 0.12
                - 0.24 * r["primary"].index(d["metric"])
            )
            sure, first = d["p_holm"] < LEVEL, d["metric"] == r["primary"][0]
            reach = [[max(0, d["difference"] - d["low"])], [max(0, d["high"] - d["difference"])]]
            forest.errorbar(
                d["difference"],
                y,
                xerr=reach,
                capsize=2,
                marker="o",
                color=report.BLUE if first else report.ORANGE,
                mfc=None if sure else "white",
                label=d["metric"] if i < 2 else None,
            )
        if forest:
            forest.axvline(0, color="0.4", linewidth=1)
            forest.set_yticks(
                [-i for i in range(len(contrasts))], [f"{arm} - {base}" for arm, base in contrasts]
            )
            forest.set_title("differences, 95 %; filled: p < .05 (Holm)", loc="left")
            forest.legend(frameon=False, fontsize=7)
        report.save(figure, path)


def write_all(out, command, arms, contrasts, cells, failed):
    """Write results.json, results.md, compare.png and compare.html. -> the text of results.md"""
    r = report.finite(results(command, arms, contrasts, cells, failed))
    text = markdown(r)
    report.write(out / "results.json", json.dumps(r, indent=1))
    report.write(out / "results.md", text)
    if r["arms"]:
        picture(r, out / "compare.png")
    report.write(
        out / "compare.html",
        report.page(
            "compare", f"nanoMERCI: {out.name}", {**r, "name": out.name, "notes": notes(r)}
        ),
    )
    return text
