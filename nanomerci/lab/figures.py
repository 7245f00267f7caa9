"""Pictures of docs/ made from a run: pass@k, calibration, heat maps.

    python -m nanomerci.lab.figures RUN [--model HUGGING_FACE_FOLDER] [--out docs/pictures]

RUN is a finished run of the default recipe; --model a chat model such as SmolLM2-135M-Instruct (a
minute or two on a CPU). Heat maps are screenshots of their pages by Chromium; where there is none
they are left as they are. Other pictures: nanomerci.lab.counters, and for comparisons
nanomerci.lab.stats.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import tyro

from nanomerci import cfn, tasks
from nanomerci.lab.counters import PICTURES, last, visit
from nanomerci.loop.model import load
from nanomerci.loop.saved_run import Run
from nanomerci.runtime.config import UserError, run_command
from nanomerci.runtime.log import log0
from nanomerci.view import report

WORD_PROBLEM = (
    "Tom has 8 apples and gets 5 more. How many apples does he have? "
    "End with a line that reads Answer: and the number."
)
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")


def main(run: tyro.conf.Positional[str], model: str = "", out: Path = PICTURES):
    """Pictures of docs/ made from a run.

    Args:
        run: run folder
        model: chat model for the heat map of a word problem
        out: where the pictures go
    """
    trained = Run.of(run)
    if trained is None:
        raise UserError(f"{run}: is not a run folder; make one with python train.py")
    out.mkdir(parents=True, exist_ok=True)
    report.report(trained.folder)
    shutil.copy(trained.folder / "pass_at_k.png", out / "pass_at_k.png")
    calibration(trained, out / "calibration.png")
    heatmap(out / "heatmap_toy.png", run, mixed(trained), "-n", "6", "--seed", "0")
    if model:
        how = "-n", "4", "--temperature", "0.7", "--max_new_tokens", "60", "--gold", "13"
        heatmap(out / "heatmap_words.png", model, WORD_PROBLEM, *how)


def mixed(run):
    """A held-out prompt to which the last evaluation found about as many correct as incorrect
    responses: only where they differ has the bonus an effect.
    """
    records = report.read_lines(run.folder / "evals.jsonl")[-1]["records"]
    problems = {problem.id: problem.prompt for problem in tasks.load(run.options).test}

    def distance(record):
        right = [outcome == "right" for outcome in record["outcomes"]]
        return abs(np.mean(right) - 0.5)

    return problems[min(records, key=distance)["id"]]


def heatmap(out, *words):
    """A page that sample.py writes, as Chromium draws it."""
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if chromium is None:
        return log0(f"{out}: left as it is, there is no Chromium here")
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "page.html"
        log0("$ python sample.py", *words, "--heatmap", page.name)
        sample = sys.executable, PICTURES.parents[1] / "sample.py", *words, "--heatmap", page
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        subprocess.run(sample, check=True, **quiet)
        flags = "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"
        size = "--virtual-time-budget=3000", "--window-size=1200,1100", f"--screenshot={out}"
        subprocess.run([chromium, *flags, *size, page.as_uri()], check=True, capture_output=True)


def calibration(run, out):
    """What does the counter count? Exact counts of prefixes beside the 1/n of a CFN that has
    learned the same visits. It counts states that look alike together: the more prompts, the
    further its 1/n is below that of the very prefix.
    """
    c, task = run.options, tasks.load(run.options)
    model, tokenizer = load(run.folder / "checkpoints/step_000000/model")
    title = "the counter's 1/n (median, quartiles) beside the exact one"
    with report.drawing(out, title, "true 1/n of the prefix") as axes:
        for prompts, n, colour in ((1, 512, report.BLUE), (32, 16, report.ORANGE)):
            problem_P = tasks.pick(task.train, range(prompts), c.seed)
            v = visit(model, model, tokenizer, task, problem_P, n, c, "calibration")
            options = {"coins": c.coins, "hidden": c.cfn_hidden, "prior": c.cfn_prior}
            counter = cfn.Counter(last(v).shape[1], lr=c.cfn_lr, **options)
            counter.pretrain(last(v), v.address_N, 20)
            invn_N = counter.score(last(v))
            _, inverse_N, times = v.key_N.unique(return_inverse=True, return_counts=True)
            n_N = times[inverse_N].numpy()
            visits = pd.DataFrame({"true": 1 / n_N, "invn": invn_N.numpy()})
            bins = visits.groupby(np.log2(n_N).astype(int))  # by powers of two of the count
            low, middle, high = bins["invn"].quantile([0.25, 0.5, 0.75]).unstack().to_numpy().T
            label = f"{prompts} prompt{'s' * (prompts > 1)}, {n} responses each"
            how = {"color": colour, "marker": "o", "capsize": 3, "label": label}
            axes.errorbar(bins["true"].mean(), middle, yerr=[middle - low, high - middle], **how)
            r = np.corrcoef(np.log(visits.T))[0, 1]
            log0(f"{out}: {label}: correlation of log 1/n with the exact one {r:.2f}")
        axes.loglog([1 / 512, 1], [1 / 512, 1], color="0.6", linewidth=1, label="exact")
        axes.set_ylabel("estimate")


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, prog="python -m nanomerci.lab.figures"))
