"""`python sample.py`: the words of the command line, and what they ask for: answers, a heat map, an
evaluation.

Nothing heavy is imported before the command line is known to be right: loading torch takes seconds.
"""

import sys
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from nanomerci.runtime import config
from nanomerci.runtime.config import UserError, loading, run_command

USAGE = """\
Sample from a model: print its responses, or colour their tokens by how novel the states are.
  python sample.py runs/toy_sql-seed0                      newest model, first held-out problem
  python sample.py runs/toy_sql-seed0 --heatmap out.html   the same as a picture, red = novel
  python sample.py HuggingFaceTB/SmolLM2-135M-Instruct "What is 27 + 85?" -n 4
  python sample.py MODEL < prompts.txt                     one prompt per line
  python sample.py MODEL --eval math500 -k 16 --temperature 0.6 --top_p 0.95"""


# (for int | None and list[str] tyro would import typeguard, which takes as long as all the rest)
Own = Annotated[int, config.Allowed("1 or more", lambda x: x >= 1 or x == -1)]


# ---- the options
@dataclass(frozen=True, kw_only=True)
class What:
    """What to sample from"""

    model: Annotated[Positional[str], arg(metavar="MODEL_OR_RUN")]
    """Hugging Face folder or hub id, or a run folder: its newest model."""
    prompt: Annotated[Positional[str], arg(metavar="PROMPT")] = ""
    """The prompt; without it: --file, a pipe, or a run's first held-out problem."""
    n: Annotated[Own, arg(aliases=["-n"])] = -1
    """Responses per prompt; -1 = 1, or 4 for a picture."""
    file: str = ""
    """File of prompts, one per line."""
    raw: bool = False
    """No chat template: the model continues the prompt."""


@dataclass(frozen=True, kw_only=True)
class How:
    """How to sample"""

    max_new_tokens: Own = -1
    """Maximum response length in tokens; -1 = the run's, or 256."""
    temperature: config.Weight = 1.0
    """Sampling temperature; 0 = greedy."""
    top_p: config.Share = 1.0
    """Nucleus sampling; 1 = off."""
    top_k: config.Size = 0
    """Sample from the k most probable tokens; 0 = off."""
    seed: int = 0
    """The same seed gives the same responses."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto = a GPU if there is one."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures"""

    heatmap: list = field(default_factory=list)
    """Write tokens coloured by 1/n to a .html (with sliders) or .png; may be given twice."""
    color: bool = False
    """The same colours in the terminal."""
    gold: str = ""
    """The correct answer (a number or formula), to grade the responses."""
    count: Annotated[int, config.Allowed("2 or more", lambda x: x >= 2)] = 64
    """For a model without a run, a counter is trained on this many further responses."""


@dataclass(frozen=True, kw_only=True)
class Test:
    """Evaluation: pass@k, mean@k, greedy, each with an interval; resumes where it was killed"""

    eval: str = ""
    """Task, aime24, math500 ... (tasks/math.py), file of problems, or Spider or BIRD folder."""
    k: Annotated[Own, arg(aliases=["-k"])] = -1
    """Responses per problem; -1 = the paper's number for the set, else 16."""
    limit: Own = -1
    """Only this many problems, the first; -1 = all."""
    data_folder: str = ""
    """Folder that holds the sets as files, for machines without network."""
    out: str = ""
    """JSONL, one line per problem; default: eval-... in the run folder, or in runs/."""


@dataclass(frozen=True, kw_only=True)
class Request(Test, Pictures, How, What):
    """All of them; the bases in reverse, as in config.Config."""


def arguments(argv):
    """-> Request, in which what was not given is None."""
    if "" in argv:
        raise UserError("prompt '': is empty; expected some text")
    a, _ = config.command_line(Request, argv, "sample.py", USAGE)
    config.check_ranges(a)
    for file in map(Path, a.heatmap):
        if file.suffix not in (".html", ".png"):
            raise UserError(f"--heatmap {file}: expected a name that ends in .html or .png")
        if not file.absolute().parent.is_dir():
            raise UserError(f"--heatmap {file}: there is no folder {file.parent}")
    n = 4 if a.heatmap or a.color else 1
    a = replace(a, prompt=a.prompt or None, n=n if a.n == -1 else a.n)
    open_ = [name for name in ("max_new_tokens", "k", "limit") if getattr(a, name) == -1]
    return replace(a, **dict.fromkeys(open_))


def read_prompts(a):
    """The prompt given, the lines of --file or of a pipe; [] if there is none."""
    if a.prompt is not None and a.file:
        raise UserError(f"--file {a.file}: a prompt is given too; expected one of the two")
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
    from nanomerci.loop.warmstart import cache_folder
    from nanomerci.runtime import ranks
    from nanomerci.runtime.log import bar, say
    from nanomerci.sample import generate
    from nanomerci.tasks import math
    from nanomerci.tasks.graders.pool import Pool

    device, run = ranks.start(a.device), heatmap.Run.of(a.model)
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
            raise UserError(f"prompt {prompt!r}: is empty; expected some text")
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
                roll = generate(
                    model,
                    [ids[i] for i in part],
                    a.n,
                    max_new_tokens=longest,
                    eos_id=eos_ids(model, tokenizer),
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
                            mine,
                            prompts[i],
                            ids[i],
                            run,
                            grades,
                            noise,
                            longest,
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
