"""A run, to look at: curves as PNG files and report.html, one page that needs neither network nor
server.

The page is data (a JSON block) and the plain scripts of nanomerci/view/page/, which draw it in the
browser. Everything a model wrote is hostile text: in the JSON block no character of it can end the
block or start a tag (embed), and the scripts put it on the page as text, never as markup. A policy
in the page's head forbids it to load anything from anywhere.
"""

import dataclasses
import json
import math
import os
import shlex
import time
from pathlib import Path

from nanomerci.runtime import config

PAGE = Path(__file__).parent / "page"
STEPS, ANSWER, SAMPLES = (
    500,
    4000,
    2_500_000,
)  # shown at most: steps a curve, characters an answer, bytes of samples in all
BLUE, ORANGE, GREEN = (
    "#0072b2",
    "#d55e00",
    "#009e73",
)  # told apart also by colour-blind readers (Okabe and Ito)
CURVES = {  # file: (title, {metric: (label, colour)})
    "reward.png": ("mean reward of the step's samples", {"reward/mean": ("reward", BLUE)}),
    "entropy.png": ("entropy of the policy, nats a token", {"entropy": ("entropy", BLUE)}),
    "length.png": ("response length, tokens", {"length/mean": ("mean length", BLUE)}),
    "bonus.png": (
        "1/n of visited states, and the bonus B of a response",
        {"cfn/invn": ("mean 1/n", BLUE), "merci/bonus": ("mean B", ORANGE)},
    ),
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
    log has written so far. Files are replaced whole, so a browser never sees half of one. A metric
    that is not there yet is left out.
    """
    run = Path(run)
    rows = read_lines(run / "metrics.jsonl")
    options = config.read(run / "config.yaml") if (run / "config.yaml").exists() else {}
    if pictures:
        curves(run, rows)
    write(
        run / "report.html", page("report", f"nanoMERCI: {run.name}", describe(run, rows, options))
    )


def read_lines(path):
    """A .jsonl file -> list of dicts. A file that is missing, or a line that is half written, is no
    error.
    """
    rows = []
    if path.exists():
        with open(path, errors="replace") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if isinstance(row, dict) and "step" in row:
                    rows.append(row)
    return rows


def write(path, content):
    """Text or bytes into a file, whole or not at all."""
    scratch = path.with_name(f".{path.name}.partial")
    scratch.write_bytes(
        content if isinstance(content, bytes) else content.encode("utf-8", "replace")
    )
    os.replace(scratch, path)


# ---- the page
def page(kind, title, data):
    """One HTML file: style, data, scripts; kind: report, heat or compare."""
    read = lambda name: (PAGE / name).read_text()
    script = "\n".join(
        map(
            read,
            ("merci.js", "common.js", *(("chart.js",) if kind != "heat" else ()), f"{kind}.js"),
        )
    )
    return (
        read("page.html")
        .replace("{style}", read("style.css"))
        .replace("{script}", script)
        .replace("{title}", title.replace("&", "&amp;").replace("<", "&lt;"))
        .replace("{data}", embed(data))
    )


def embed(data):
    """Data -> JSON that may stand in a <script> block: no <, >, & in it, nothing but ASCII; NaN and
    infinities are null.
    """
    text = json.dumps(finite(data), allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def finite(x):
    if isinstance(x, float):
        return x if math.isfinite(x) else None
    if isinstance(x, dict):
        return {str(k): finite(v) for k, v in x.items()}
    return [finite(v) for v in x] if isinstance(x, list | tuple) else x


def describe(run, rows, options):
    """Everything the report shows, as plain data."""
    stepped, evals = (
        [r for r in rows if r["step"]],
        [r for r in rows if any(k.startswith("eval/mean@") for k in r)],
    )
    shown = thin(stepped, STEPS)
    names = sorted(
        {
            k
            for r in shown
            for k, v in r.items()
            if k != "step" and not k.startswith("eval/") and is_number(v)
        }
    )
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
        "evals": [
            {k: digits(v) for k, v in r.items() if k == "step" or k.startswith("eval/")}
            for r in thin(evals, STEPS)
        ],
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
    """Five significant ones: a page is looked at, the exact numbers are in metrics.jsonl."""
    if isinstance(value, list):
        return [digits(v) for v in value]
    return (
        float(f"{value:.5g}") if isinstance(value, float) else value if is_number(value) else None
    )


def thin(rows, most):
    """At most so many rows, evenly spread, first and last among them."""
    if len(rows) <= most:
        return rows
    if most < 2:
        return rows[-1:]
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]


def samples(records):
    """Groups for the sample browser, within a budget of bytes: long answers are cut, then steps are
    left out evenly.
    """

    def cut(text):
        text = str(text)
        return (
            text
            if len(text) <= ANSWER
            else f"{text[:ANSWER]}\n[... {len(text) - ANSWER} more characters in samples.jsonl]"
        )

    groups = []
    for record in records:
        group = record | {
            "prompt": cut(record.get("prompt", "")),
            "answers": [cut(a) for a in record.get("answers", [])],
        }
        if any(
            len(ids) > ANSWER // 4 for ids in group.get("tokens", [])
        ):  # too many for a heat map in a report
            group = {k: v for k, v in group.items() if k not in ("tokens", "invn")}
        groups.append(group)
    size = sum(len(embed(g)) for g in groups)
    while size > SAMPLES and len(groups) > 1:
        groups = thin(
            groups,
            max(1, min(len(groups) - 1, int(len(groups) * SAMPLES / size)))
            if len(groups) > 2
            else 1,
        )
        size = sum(len(embed(g)) for g in groups)
    return groups if size <= SAMPLES else []


def commands(run, options):
    """Commands that make the same run: from its config.yaml, and from the recipe that is nearest to
    it.
    """
    again = f"python train.py {shlex.quote(str(run / 'config.yaml'))} --out {shlex.quote(f'{run}-again')}"
    differing = {}
    for recipe in config.recipes():
        base = dataclasses.asdict(
            config.resolved(config.Config(**config.read(config.RECIPES / f"{recipe}.yaml")))
        )
        differing[recipe] = {
            k: v for k, v in options.items() if base[k] != v and k not in ("out", "resume")
        }
    recipe = min(differing, key=lambda r: (len(differing[r]), r))
    words = [recipe, *(word for k, v in differing[recipe].items() for word in (f"--{k}", str(v)))]
    return [again, "python train.py " + " ".join(map(shlex.quote, words))]


# ---- the PNG files
def curves(run, rows):
    from matplotlib import rc_context

    with rc_context(LOOK):
        for name, (title, metrics) in CURVES.items():
            lines = {
                metric: [(r["step"], r[metric]) for r in rows if is_number(r.get(metric))]
                for metric in metrics
            }
            if any(lines.values()):
                figure, axes = canvas(title, "step")
                for metric, points in lines.items():
                    label, colour = metrics[metric]
                    x, y = ([p[i] for p in points] for i in (0, 1))
                    axes.plot(x, y, "." if len(points) < 3 else "-", color=colour, label=label)
                if len(metrics) > 1:
                    axes.legend(frameon=False)
                save(figure, run / name)
        evals = [r for r in rows if any(k.startswith("eval/mean@") for k in r)]
        if evals:
            over_steps(run / "eval.png", evals)
            before_after(run / "pass_at_k.png", evals[0], evals[-1])


def canvas(title, x_label):
    from matplotlib.figure import Figure  # not pyplot: no window, nothing global

    figure = Figure(figsize=(5, 3))
    axes = figure.add_axes(
        (0.12, 0.15, 0.85, 0.74)
    )  # placed by hand: a computed layout takes as long as all the rest
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel(x_label)
    return figure, axes


def save(figure, path):
    from io import BytesIO

    content = BytesIO()
    figure.savefig(content, format="png", dpi=110)
    write(path, content.getvalue())


def eval_names(row):
    """Metrics with an interval: mean@K, then pass@k by k, then greedy."""
    names = [k.removesuffix("_ci") for k in row if k.startswith("eval/") and k.endswith("_ci")]
    return sorted(
        names,
        key=lambda n: (
            not n.startswith("eval/mean"),
            "@" not in n,
            int(n.split("@")[1]) if "@" in n else 0,
        ),
    )


def over_steps(path, evals):
    figure, axes = canvas("held-out problems, 95 % intervals", "step")
    names = eval_names(evals[0])
    for name, colour in zip((names[0], names[-2] if len(names) > 2 else names[-1]), (BLUE, ORANGE)):
        rows = [r for r in evals if name in r]
        x, y = [r["step"] for r in rows], [r[name] for r in rows]
        low, high = zip(*(r.get(f"{name}_ci", [r[name]] * 2) for r in rows))
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(x, y, color=colour, marker="o", markersize=3, label=name.removeprefix("eval/"))
    axes.legend(frameon=False)
    save(figure, path)


def before_after(path, before, after):
    """pass@k over k of the first and the last evaluation; mean@K stands at k = 1, of which it is
    the unbiased estimate.
    """
    figure, axes = canvas("pass@k on held-out problems, 95 % intervals", "k")
    for row, colour, shift in ((before, BLUE, 0.98), (after, ORANGE, 1.02)):
        names = [n for n in eval_names(row) if "@" in n]
        k = [1 if n.startswith("eval/mean") else int(n.split("@")[1]) for n in names]
        y = [row[n] for n in names]
        below, above = zip(
            *((row[n] - row[f"{n}_ci"][0], row[f"{n}_ci"][1] - row[n]) for n in names)
        )
        axes.errorbar(
            [x * shift for x in k],
            y,
            yerr=[[max(0, b) for b in below], [max(0, a) for a in above]],
            color=colour,
            marker="o",
            markersize=3,
            capsize=2,
            label=f"step {row['step']}",
        )
        axes.set_xscale("log", base=2)
        axes.set_xticks(k, [str(x) for x in k])
    axes.legend(frameon=False)
    save(figure, path)


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
