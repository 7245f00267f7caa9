"""The report of a run: curves as PNG files and report.html, one page that needs neither network nor
server.

The page is data (a JSON block) and the plain scripts of nanomerci/view/page/, which draw it in the
browser. Everything a model wrote is hostile text: in the JSON block no character of it can end the
block or start a tag (embed), and the scripts put it on the page as text, never as markup. A policy
in the page's head forbids it to load anything from anywhere.
"""

import dataclasses
import json
import os
import re
import shlex
import time
from contextlib import contextmanager, suppress
from io import BytesIO
from itertools import chain
from pathlib import Path

import numpy as np

from nanomerci.runtime import config

PAGE = Path(__file__).parent / "page"
STEPS = 500  # shown at most: steps per curve,
ANSWER = 4000  # characters per response,
SAMPLES = 2_500_000  # bytes of samples in all
# for colour-blind readers too (Okabe and Ito)
COLOURS = BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
BONUS = {"cfn/invn": "mean 1/n", "merci/bonus": "mean B"}
CURVES = {  # file: (title, {metric: label})
    "reward.png": ("mean reward of the step's responses", {"reward/mean": None}),
    "entropy.png": ("entropy of the policy, nats per token", {"entropy": None}),
    "length.png": ("response length, tokens", {"length/mean": None}),
    "bonus.png": ("1/n of visited states, and the bonus B of a response", BONUS),
}
LOOK = {
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
}


def report(run, pictures=True):
    """Write report.html and, with pictures, the curves into the run folder, from the files that the
    log has written so far; a metric that is not there yet is left out.
    """
    run = Path(run)
    rows = read_lines(run / "metrics.jsonl")
    options = config.read(run / "config.yaml") if (run / "config.yaml").exists() else {}
    if pictures:
        curves(run, rows)
    content = page("report", f"nanoMERCI: {run.name}", describe(run, rows, options))
    write(run / "report.html", content)


def read_lines(path):
    """A .jsonl file -> list of dicts. A missing file or a line that is half written is no error."""
    rows = []
    for line in path.read_text(errors="replace").split("\n") if path.exists() else ():
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and "step" in row]


def write(path, content):
    """Text or bytes into a file, whole or not at all."""
    scratch = path.with_name(f".{path.name}.partial")
    if isinstance(content, str):
        content = content.encode("utf-8", "replace")
    scratch.write_bytes(content)
    os.replace(scratch, path)


# ---- the page
def page(kind, title, data):
    """One HTML file: style, data, scripts; kind: report, heat or compare."""
    scripts = "merci.js", "common.js", *(["chart.js"] if kind != "heat" else []), f"{kind}.js"
    parts = {
        "style": (PAGE / "style.css").read_text(),
        "script": "\n".join((PAGE / name).read_text() for name in scripts),
        "title": title.replace("&", "&amp;").replace("<", "&lt;"),
        "data": embed(data),
    }
    # in one pass: what is put in is not searched for marks again
    return re.sub(r"\{(\w+)\}", lambda mark: parts[mark[1]], (PAGE / "page.html").read_text())


def embed(data):
    """Data -> ASCII JSON without <, >, &, for a <script> block; NaN and infinities are null."""
    finite = json.loads(json.dumps(data), parse_constant=lambda _: None)
    text = json.dumps(finite, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def evaluations(rows):
    return [r for r in rows if "eval/problems" in r]


def describe(run, rows, options):
    """Everything the report shows, as plain data."""
    stepped = [r for r in rows if r["step"]]
    shown = thin(stepped, STEPS)
    numbers = {name for name, value in chain(*map(dict.items, shown)) if is_number(value)}
    names = sorted(name for name in numbers - {"step"} if not name.startswith("eval/"))
    evals = []
    for row in thin(evaluations(rows), STEPS):
        evals.append({k: digits(v) for k, v in row.items() if k == "step" or k.startswith("eval/")})
    return {
        "run": run.name,
        "options": options,
        "commands": commands(run, options),
        "written": time.strftime("%Y-%m-%d %H:%M:%S"),
        "at": time.time(),
        "last": rows[-1]["step"] if rows else 0,
        "steps": options.get("steps"),
        "thinned": len(stepped) - len(shown),
        "step": [r["step"] for r in shown],
        "series": {name: [digits(r.get(name)) for r in shown] for name in names},
        "evals": evals,
        "calibration": newest_calibration(run / "calibration.jsonl"),
        "samples": samples(read_lines(run / "samples.jsonl")),
    }


def newest_calibration(path):
    """The last record that has prefixes visited before; without its single points."""
    known = [r for r in read_lines(path) if any(b["n"] for b in r["bins"])]
    return {"step": known[-1]["step"], "bins": known[-1]["bins"]} if known else None


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def digits(value):
    """Five significant ones: a page is read, the exact numbers are in metrics.jsonl."""
    if isinstance(value, list):
        return [digits(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.5g}")
    return value if is_number(value) else None


def thin(rows, most):
    """At most so many rows, evenly spread, first and last among them."""
    if most < 2:
        return rows[-1:]
    last, gaps = len(rows) - 1, most - 1
    return rows if last <= gaps else [rows[round(i * last / gaps)] for i in range(most)]


def cut(text):
    more = len(text) - ANSWER
    return f"{text[:ANSWER]}\n[... {more} more characters in samples.jsonl]" if more > 0 else text


def samples(records):
    """Groups for the sample browser, in so many bytes: long answers cut, steps left out evenly."""
    groups = []
    for record in records:
        answers = [cut(answer) for answer in record.get("answers", [])]
        group = record | {"prompt": cut(record.get("prompt", "")), "answers": answers}
        if any(len(ids) > ANSWER // 4 for ids in group.get("tokens", [])):
            del group["tokens"], group["invn"]  # too many for a heat map in a report
        groups.append(group)
    while (size := sum(len(embed(g)) for g in groups)) > SAMPLES and len(groups) > 1:
        groups = thin(groups, min(len(groups) - 1, max(1, int(len(groups) * SAMPLES / size))))
    return groups if size <= SAMPLES else []


def commands(run, options):
    """Commands that make the same run: from its config.yaml, and from the nearest recipe."""
    again = ["python", "train.py", str(run / "config.yaml"), "--out", f"{run}-again"]
    differing = {}
    for recipe in config.recipes():
        c = config.resolved(config.Config(**config.read(config.RECIPES / f"{recipe}.yaml")))
        base = dataclasses.asdict(c) | {name: options.get(name) for name in ("out", "resume")}
        differing[recipe] = {k: v for k, v in options.items() if base[k] != v}
    recipe = min(differing, key=lambda r: (len(differing[r]), r))
    flags = ((f"--{name}", str(value)) for name, value in differing[recipe].items())
    return [shlex.join(again), shlex.join(["python", "train.py", recipe, *chain(*flags)])]


# ---- the PNG files
@contextmanager
def drawing(path, title, x_label):
    """Axes to draw on; the picture is written if something was drawn."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # not pyplot: no window, nothing global

    with rc_context(LOOK):
        figure = Figure(figsize=(5, 3))
        # placed by hand: a computed layout takes as long as all the rest
        axes = figure.add_axes((0.12, 0.15, 0.85, 0.74))
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel(x_label)
        yield axes
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False)
        if axes.lines:
            save(figure, path)


def save(figure, path):
    content = BytesIO()
    figure.savefig(content, format="png", dpi=110)
    write(path, content.getvalue())


def curves(run, rows):
    for name, (title, metrics) in CURVES.items():
        with drawing(run / name, title, "step") as axes:
            for (metric, label), colour in zip(metrics.items(), COLOURS, strict=False):
                known = [r for r in rows if is_number(r.get(metric))]
                values = [r["step"] for r in known], [r[metric] for r in known]
                marker = "." if len(known) < 3 else ""
                if known:
                    axes.plot(*values, color=colour, label=label, marker=marker)
    if evals := evaluations(rows):
        over_evaluations(run / "eval.png", evals)
        before_after(run / "pass_at_k.png", evals[0], evals[-1])


def eval_names(row):
    """Metrics with an interval: mean@K, which is the estimate of pass@1, pass@k by k, greedy."""
    return [name for name in row if f"{name}_ci" in row]


def over_evaluations(path, evals):
    first, *others = (name for name in eval_names(evals[0]) if "@" in name)
    with drawing(path, "held-out problems, 95 % intervals", "step") as axes:
        for name, colour in zip((first, *others[-1:]), COLOURS, strict=False):
            rows = [r for r in evals if f"{name}_ci" in r]
            steps, values = [r["step"] for r in rows], [r[name] for r in rows]
            low, high = np.array([r[f"{name}_ci"] for r in rows]).T
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
            label = name.removeprefix("eval/")
            axes.plot(steps, values, label=label, color=colour, marker="o", markersize=3)


def before_after(path, before, after):
    """pass@k over k of the first and the last evaluation."""
    with drawing(path, "pass@k on held-out problems, 95 % intervals", "k") as axes:
        for row, colour, shift in ((before, BLUE, 0.98), (after, ORANGE, 1.02)):
            names = [name for name in eval_names(row) if "@" in name]
            ks = np.array([1, *(int(name.split("@")[1]) for name in names[1:])])
            value = np.array([row[name] for name in names])
            low, high = np.array([row[f"{name}_ci"] for name in names]).T
            reach = np.clip([value - low, high - value], 0, None)
            look = {"color": colour, "marker": "o", "markersize": 3, "capsize": 2}
            axes.errorbar(ks * shift, value, yerr=reach, label=f"step {row['step']}", **look)
            axes.set_xscale("log", base=2)
            axes.set_xticks(ks, list(map(str, ks)))


class LiveReport:
    """A sink of the log: the report is written anew at most every PAUSE seconds, and for at most
    SHARE of the run's time.
    """

    PAUSE, SHARE = 10.0, 0.02

    def __init__(self, run):
        self.run, self.next = run, 0.0

    def __call__(self, metrics):
        start = time.perf_counter()
        if start > self.next:
            report(self.run, pictures=False)
            now = time.perf_counter()
            self.next = now + max(self.PAUSE, (now - start) / self.SHARE)
