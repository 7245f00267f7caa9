"""`python sample.py`: the words of the command line, and what they ask for: answers, a heat map, an
evaluation.

Nothing heavy is imported before the command line is known to be right: loading torch takes seconds.
"""

import argparse
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from nanomerci.runtime.config import UserError, loading, run_command


class Parser(argparse.ArgumentParser):
    def error(self, message):  # one line, status 2, as for every command of ours
        raise UserError(f"{message}; see python sample.py --help")


def arguments(argv):
    p = Parser(
        prog="sample.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="""\
Sample from a model: print its answers, or draw how new the states are that they go through.

  python sample.py runs/toy_sql-seed0                                 the run's newest model, its first held-out problem
  python sample.py runs/toy_sql-seed0 --heatmap out.html              the same as a picture in which red is new ground
  python sample.py HuggingFaceTB/SmolLM2-135M-Instruct "What is 27 + 85?" -n 4
  python sample.py MODEL < prompts.txt                                a prompt a line
  python sample.py MODEL --eval math500 -k 16 --temperature 0.6 --top_p 0.95 --max_new_tokens 8192""",
    )
    p.add_argument(
        "model",
        metavar="MODEL_OR_RUN",
        help="Hugging Face folder or hub id, or a run folder: its newest model",
    )
    p.add_argument(
        "prompt",
        nargs="?",
        help="what to ask; without it: --file, a pipe, or a run's first held-out problem",
    )
    what = p.add_argument_group("what to sample")
    what.add_argument("-n", type=int, help="samples a prompt (default 1, or 4 for a picture)")
    what.add_argument("--file", help="file of prompts, one a line")
    what.add_argument(
        "--raw", action="store_true", help="no chat template: the model continues the prompt"
    )
    how = p.add_argument_group("how")
    how.add_argument(
        "--max_new_tokens", type=int, help="longest response, tokens (default: the run's, or 256)"
    )
    how.add_argument("--temperature", type=float, default=1.0, help="0 = greedy (default 1.0)")
    how.add_argument(
        "--top_p", type=float, default=1.0, help="nucleus sampling (default 1.0 = off)"
    )
    how.add_argument(
        "--top_k", type=int, default=0, help="the k likeliest tokens only (default 0 = off)"
    )
    how.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same samples (default 0)"
    )
    how.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda"),
        help="auto: a GPU if there is one",
    )
    show = p.add_argument_group("pictures")
    show.add_argument(
        "--heatmap",
        metavar="FILE",
        action="append",
        default=[],
        help="write tokens coloured by 1/n, with sliders, to a .html; may be given twice",
    )
    show.add_argument("--color", action="store_true", help="the same colours in the terminal")
    show.add_argument(
        "--gold", help="the right answer (a number or formula), to mark answers right or wrong"
    )
    show.add_argument(
        "--count",
        type=int,
        default=64,
        help="a model without a run has no counter: one is made from so many "
        "further samples (default 64)",
    )
    test = p.add_argument_group(
        "evaluation: pass@k, mean@k, greedy, each with an interval; goes on where it was killed"
    )
    test.add_argument(
        "--eval",
        metavar="NAME",
        help="toy_sql, toy_math, arithmetic, aime24, math500 ... (nanomerci/tasks/math.py), "
        "a file of problems, or a Spider or BIRD folder",
    )
    test.add_argument(
        "-k", type=int, help="samples a problem (default: the paper's for the set, else 16)"
    )
    test.add_argument("--limit", type=int, help="the first so many problems only")
    test.add_argument(
        "--data_folder", default="", help="where sets lie as files, for machines without network"
    )
    test.add_argument(
        "--out", help="JSONL, a line a problem (default: eval-... in the run folder, or in runs/)"
    )
    a = p.parse_intermixed_args(argv)
    a.n = (4 if a.heatmap or a.color else 1) if a.n is None else a.n
    for name, least in (
        ("n", 1),
        ("count", 2),
        ("temperature", 0),
        ("top_k", 0),
        ("max_new_tokens", 1),
        ("k", 1),
        ("limit", 1),
    ):
        if getattr(a, name) is not None and getattr(a, name) < least:
            raise UserError(
                f"-{'-' * (len(name) > 1)}{name} {getattr(a, name)}: wanted at least {least}"
            )
    if not 0 < a.top_p <= 1:
        raise UserError(f"--top_p {a.top_p}: is a share of probability; wanted above 0, at most 1")
    for file in map(Path, a.heatmap):
        if file.suffix != ".html":
            raise UserError(
                f"--heatmap {file}: expected a name that ends in .html; for a picture take a "
                "screenshot of that page"
            )
        if not file.absolute().parent.is_dir():
            raise UserError(f"--heatmap {file}: there is no folder {file.parent}")
    return a


def read_prompts(a):
    """The prompt given, the lines of --file or of a pipe; [] if there is none."""
    if a.prompt is not None and a.file:
        raise UserError(f"--file {a.file}: a prompt is given too; wanted one of the two")
    if a.prompt is not None:
        return [a.prompt]
    try:
        text = (
            Path(a.file).read_text()
            if a.file
            else ""
            if sys.stdin is None or sys.stdin.isatty()
            else sys.stdin.read()
        )
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{a.file or 'standard input'}: cannot be read ({error})") from None
    return [line for line in text.splitlines() if line.strip()]


class Typewriter:
    """Prints an answer token by token, made harmless for a terminal."""

    def __init__(self, tokenizer):
        from nanomerci.loop.rollout import Pieces
        from nanomerci.view.heatmap import visible

        self.add, self.visible, self.typed = (
            Pieces(tokenizer, skip_special_tokens=True),
            visible,
            "",
        )

    def __call__(self, row, token):
        self.type(self.add(token))

    def type(self, text):
        self.typed += text
        print(self.visible(text), end="", flush=True)

    def end(self, text):
        """The answer is whole: what of it still waits, a character cut in two perhaps, follows."""
        self.type(text[len(self.typed) :])
        print()


def main():
    a = arguments(sys.argv[1:])
    prompts = [] if a.eval else read_prompts(a)
    loading()
    from nanomerci import tasks
    from nanomerci.loop import evaluate
    from nanomerci.view import heatmap

    if a.eval:
        return evaluate.command(a)
    import torch

    from nanomerci.loop.model import context, encode, eos_ids, load
    from nanomerci.loop.saved_run import Run
    from nanomerci.loop.warmstart import cache_folder
    from nanomerci.runtime import ranks
    from nanomerci.runtime.log import bar, say
    from nanomerci.sample import generate
    from nanomerci.tasks import math
    from nanomerci.tasks.graders.pool import Pool

    device, run = ranks.start(a.device), Run.of(a.model)
    task = tasks.load(run.options, cache_folder()) if run else None
    problems = {p.prompt: p for p in (*task.train, *task.test)} if task else {}
    if not prompts and not task:
        raise UserError(
            'no prompt: give one in quotes ("What is 27 + 85?"), --file FILE, or pipe lines in'
        )
    prompts = prompts or [task.test[0].prompt]
    if a.gold and len(prompts) > 1:
        raise UserError(f"--gold {a.gold}: is the answer to one prompt, got {len(prompts)} prompts")
    model, tokenizer = load(
        a.model, device, torch.float32 if device.type == "cpu" else torch.bfloat16
    )
    if not tokenizer.chat_template and not a.raw:
        say(
            f"{a.model} is a base model (no chat template): it continues the prompt as it "
            "stands, so word it as a text whose next "
            "words are the answer; --raw does the same without this line"
        )
    longest = a.max_new_tokens or (run.options.max_new_tokens if run else 256)
    ids = [
        tokenizer(prompt)["input_ids"] if a.raw else encode(tokenizer, prompt) for prompt in prompts
    ]
    for prompt, tokens in zip(prompts, ids):
        if not tokens or not prompt.strip():
            raise UserError(f"prompt {prompt!r}: is empty; wanted some text")
        if len(tokens) + longest > context(model):
            raise UserError(
                f"--max_new_tokens {longest}: with a prompt of {len(tokens)} tokens that "
                "exceeds the model's "
                f"context of {context(model)}"
            )

    def grade(pool, prompt, texts):
        problem = problems.get(prompt)
        jobs = (
            [(math.grade, a.gold, t) if a.gold else task.job(problem, t) for t in texts]
            if a.gold or problem
            else []
        )
        return pool.grade(jobs) or [None] * len(texts), [
            task.noise(problem, t) if problem else math.noise(t) for t in texts
        ]

    sampler = partial(generate, model, max_new_tokens=longest, eos_id=eos_ids(model, tokenizer))
    groups, together, pictured = [], max(1, 64 // a.n), a.heatmap or a.color
    typewriter = Typewriter(tokenizer) if len(prompts) == a.n == 1 and not a.color else None
    with Pool(deadline=10.0) as pool:
        for first in range(0, len(prompts), together):
            part = range(first, min(first + together, len(prompts)))
            with (
                nullcontext()
                if typewriter
                else bar(len(part) * a.n, "sample", "answer") as progress
            ):
                roll = sampler(
                    [ids[i] for i in part],
                    a.n,
                    temperature=a.temperature,
                    top_p=a.top_p,
                    top_k=a.top_k,
                    seed=a.seed,
                    stream=typewriter,
                    progress=progress and progress.update,
                    rows=torch.arange(first * a.n, (part[-1] + 1) * a.n),
                )
            for i in part:
                mine = roll.rows(
                    torch.arange((i - first) * a.n, (i - first + 1) * a.n, device=device)
                )
                texts = tokenizer.batch_decode(mine.responses(), skip_special_tokens=True)
                grades, noise = grade(pool, prompts[i], texts)
                if pictured:
                    groups.append(
                        heatmap.group(
                            model,
                            tokenizer,
                            sampler,
                            mine,
                            prompts[i],
                            ids[i],
                            run,
                            grades,
                            noise,
                            a,
                        )
                    )
                place = heatmap.scale(groups[-1:]) if a.color else None
                if len(prompts) > 1:
                    print(f"\n=== {heatmap.visible(prompts[i])}")
                for g, (text, mark) in enumerate(zip(texts, grades)):
                    if typewriter:
                        typewriter.end(text)
                        print(f"--- {mark.outcome}\n" if mark else "", end="")
                        break
                    if a.n > 1 or mark:
                        print(f"--- sample {g + 1}" + (f": {mark.outcome}" if mark else ""))
                    print(
                        heatmap.ansi(groups[-1]["samples"][g], place[2])
                        if place
                        else heatmap.visible(text),
                        flush=True,
                    )
                if place:
                    print(heatmap.ansi_bar(*place[:2]))
    for file in a.heatmap:
        heatmap.draw(file, f"How new is it? {Path(a.model).name}", groups, heatmap.options(run))
        say(f"heat map: {file}")


def command():
    run_command(main)
