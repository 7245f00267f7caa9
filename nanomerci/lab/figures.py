"""The README's pictures, made again from real runs by the README's own commands.

    python -m nanomerci.lab.figures RUN [--model HUGGING_FACE_FOLDER] [--out docs/pictures]

RUN is a finished run of the default recipe; --model a chat model such as SmolLM2-135M-Instruct (a
minute or two on a CPU). Screenshots of the pages are taken where there is a Chromium; without one
they are left as they are.

Axes: P prompts, n samples a prompt, B = P*n rows, T token positions, N tokens.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

from nanomerci import cfn, tasks
from nanomerci.address import address, seed
from nanomerci.loop.model import encode, eos_ids, load, look_at
from nanomerci.loop.warmstart import cache_folder
from nanomerci.runtime.config import UserError, run_command
from nanomerci.runtime.log import say
from nanomerci.sample import generate
from nanomerci.view import report
from nanomerci.view.heatmap import Run

ROOT = Path(__file__).parents[2]
WORD_PROBLEM = (
    "Tom has 3 boxes with 12 apples each. He eats 5 apples. How many apples are left? "
    "Think step by step and end with a line that reads Answer: and the number."
)
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")


def main():
    p = argparse.ArgumentParser(
        prog="python -m nanomerci.lab.figures", description=__doc__.split("\n")[0]
    )
    p.add_argument("run", help="run folder")
    p.add_argument("--model", help="chat model for the heat map of a word problem")
    p.add_argument("--out", type=Path, default=ROOT / "docs/pictures")
    a = p.parse_args()
    run = Run.of(a.run)
    if run is None:
        raise UserError(f"{a.run}: is no run folder; make one with python train.py")
    a.out.mkdir(parents=True, exist_ok=True)
    report.report(run.folder)
    shutil.copy(run.folder / "pass_at_k.png", a.out / "pass_at_k.png")
    calibration(run, a.out / "calibration.png")
    pictures = [("toy", (a.run, "-n", "6", "--seed", "0"))]
    if a.model:
        how = ("-n", "4", "--temperature", "0.7", "--max_new_tokens", "110", "--gold", "31")
        pictures.append(("words", (a.model, WORD_PROBLEM, *how)))
    with tempfile.TemporaryDirectory() as scratch:
        for name, words in pictures:
            files = (
                "--heatmap",
                a.out / f"heatmap_{name}.png",
                "--heatmap",
                Path(scratch) / f"{name}.html",
            )
            say("$ python sample.py", *words, *files)
            subprocess.run(
                [sys.executable, ROOT / "sample.py", *words, *files],
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            screenshot(Path(scratch) / f"{name}.html", a.out / f"page_{name}.png")
        screenshot(run.folder / "report.html", a.out / "report.png")


def screenshot(page, out, width=1200, height=1100):
    """A page as Chromium draws it, as PNG."""
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if chromium is None:
        return say(f"{out}: left as it is, there is no Chromium here")
    flags = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--virtual-time-budget=3000",
    )
    subprocess.run(
        [
            chromium,
            *flags,
            f"--window-size={width},{height}",
            f"--screenshot={out}",
            page.absolute().as_uri(),
        ],
        check=True,
        capture_output=True,
    )


@torch.no_grad()
def visits(run, prompts, n):
    """States the run's initial policy visits in n samples to each of some prompts. -> hidden_ND,
    address_N, and count_N, how often each visit's very prefix was visited.
    """
    model, tokenizer = load(run.folder / "checkpoints/step_000000/model")
    task = tasks.load(run.options, cache_folder())
    ids = [
        encode(tokenizer, p.prompt)
        for p in tasks.pick(task.train, range(prompts), run.options.seed)
    ]
    roll = generate(
        model,
        ids,
        n,
        max_new_tokens=run.options.max_new_tokens,
        eos_id=eos_ids(model, tokenizer),
        seed=seed("calibration", run.options.seed),
    )
    place_BT = torch.arange(roll.tokens_BT.numel()).view_as(roll.tokens_BT)
    hidden_ND, place_N, T = *look_at(model, roll, place_BT)[2], roll.tokens_BT.shape[1]
    rows = roll.tokens_BT.tolist()
    prefix_N = [tuple(rows[place // T][: place % T + 1]) for place in place_N.tolist()]
    times = Counter(prefix_N)
    return (
        hidden_ND,
        address("calibration", place_N),
        torch.tensor([times[prefix] for prefix in prefix_N]),
    )


def calibration(run, out):
    """What does the counter count? Exact counts of prefixes beside the 1/n of a CFN that has
    learned the same visits. It counts states that look alike together: the more prompts, the
    further its 1/n is below that of the very prefix.
    """
    from matplotlib import rc_context

    c = run.options
    with rc_context(report.LOOK):
        figure, axes = report.canvas(
            "the counter's 1/n (median, quartiles) beside the exact one", "true 1/n of the prefix"
        )
        for prompts, n, colour in ((1, 512, report.BLUE), (32, 16, report.ORANGE)):
            hidden_ND, address_N, count_N = visits(run, prompts, n)
            counter = cfn.Counter(
                hidden_ND.shape[1],
                coins=c.coins,
                hidden=c.cfn_hidden,
                prior=c.cfn_prior,
                lr=c.cfn_lr,
            )
            counter.pretrain(hidden_ND, address_N, passes=20)
            with torch.no_grad():
                invn_N = cfn.inverse_count(counter.net(hidden_ND))
            bins = [
                (count_N >= 2**i) & (count_N < 2 ** (i + 1))
                for i in range(int(count_N.max()).bit_length())
            ]
            bins = [b for b in bins if b.any()]
            low, middle, high = (
                torch.stack([invn_N[b].quantile(q) for b in bins]) for q in (0.25, 0.5, 0.75)
            )
            true, spread = (
                [float((1 / count_N[b]).mean()) for b in bins],
                torch.stack([middle - low, high - middle]),
            )
            axes.errorbar(
                true,
                middle,
                yerr=spread.numpy(),
                color=colour,
                marker="o",
                capsize=3,
                label=f"{prompts} prompt{'s' * (prompts > 1)}, {n} samples each",
            )
            r = torch.corrcoef(torch.stack([(1 / count_N).log(), invn_N.log()]))[0, 1]
            say(
                f"{out}: {prompts} x {n} samples, {len(count_N)} visits, correlation of log "
                f"1/n with the exact one {r:.2f}"
            )
        axes.loglog([1 / 512, 1], [1 / 512, 1], color="0.6", linewidth=1, label="exact")
        axes.set_ylabel("estimate")
        axes.legend(frameon=False)
        report.save(figure, out)


if __name__ == "__main__":
    run_command(main)
