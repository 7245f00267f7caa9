"""`python sample.py`: the words of the command line, and what they ask for: responses, a heat map,
an evaluation.

Nothing heavy is imported before the command line is known to be right: loading torch takes seconds.
"""

import sys
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from nanomerci.runtime import config
from nanomerci.runtime.config import UserError

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
    """Write tokens coloured by 1/n, with sliders, to a .html; may be given twice."""
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


def parse():
    """The command line of sample.py -> Request; before torch is loaded."""
    a = config.run_command(arguments, sys.argv[1:])
    config.loading()
    return a


def arguments(argv):
    """-> Request, in which what was not given is None."""
    if "" in argv:
        raise UserError("prompt '': is empty; expected some text")
    a, _ = config.command_line(Request, argv, "sample.py", USAGE)
    config.check_ranges(a)
    for file in map(Path, a.heatmap):
        if file.suffix != ".html":
            raise UserError(
                f"--heatmap {file}: expected a name that ends in .html; for a picture take a "
                "screenshot of that page"
            )
        if not file.absolute().parent.is_dir():
            raise UserError(f"--heatmap {file}: there is no folder {file.parent}")
    if a.prompt and a.file:
        raise UserError(f"--file {a.file}: a prompt is given too; expected one of the two")
    n = 4 if a.heatmap or a.color else 1
    a = replace(a, prompt=a.prompt or None, n=n if a.n == -1 else a.n)
    open_ = [name for name in ("max_new_tokens", "k", "limit") if getattr(a, name) == -1]
    return replace(a, **dict.fromkeys(open_))


# ---- what is asked for
def main(a, sampler_class, check):
    """Answer a Request with sample.Sampler and sample.check, which are handed down."""
    config.run_command(evaluate if a.eval else answer, a, sampler_class, check)


def open_model(a, sampler_class, check, max_new_tokens):
    """-> a sampler for the model that was named."""
    import torch

    from nanomerci.loop.model import load
    from nanomerci.runtime import ranks

    device = ranks.start(a.device)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model, tokenizer = load(a.model, device, dtype)
    check(model, a.model)
    return sampler_class(model, tokenizer, max_new_tokens, a.temperature, a.top_p, a.top_k)


def evaluate(a, sampler_class, check):
    from nanomerci.view import evaluation

    evaluation.command(a, open_model(a, sampler_class, check, a.max_new_tokens))


def answer(a, sampler_class, check):
    """Print responses; with --heatmap or --color, how novel their states are."""
    from nanomerci import tasks
    from nanomerci.loop.saved_run import Run
    from nanomerci.runtime.log import log0
    from nanomerci.tasks.graders.pool import Pool
    from nanomerci.view import heatmap

    prompts, run = read_prompts(a), Run.of(a.model)
    task = tasks.load(run.options) if run else None
    if not prompts and not task:
        raise UserError(
            'no prompt: give one in quotes ("What is 27 + 85?"), --file FILE, or pipe lines in'
        )
    prompts = prompts or [task.test[0].prompt]
    if a.gold and len(prompts) > 1:
        raise UserError(f"--gold {a.gold}: is the answer to one prompt, got {len(prompts)} prompts")
    longest = a.max_new_tokens or (run.options.max_new_tokens if run else 256)
    sampler = open_model(a, sampler_class, check, longest)
    if not sampler.tokenizer.chat_template and not a.raw:
        log0(
            f"{a.model} is a base model (no chat template): it continues the prompt as it stands, "
            "so word it as a text whose next words are the answer; --raw does the same without "
            "this line"
        )
    ids = tokenize(a, sampler, prompts)
    with Pool(deadline=10.0) as pool:
        marker = Marker(a, task, pool)
        groups = list(respond(a, sampler, prompts, ids, run, marker))
    for file in a.heatmap:
        heatmap.draw(file, f"Novelty of tokens: {Path(a.model).name}", groups, heatmap.options(run))
        log0(f"heat map: {file}")


def read_prompts(a):
    """The prompt given, the lines of --file or of a pipe; [] if there is none."""
    if a.prompt is not None:
        return [a.prompt]
    try:
        if a.file:
            text = Path(a.file).read_text()
        elif sys.stdin is None or sys.stdin.isatty():
            text = ""
        else:
            text = sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{a.file or 'standard input'}: cannot be read ({error})") from None
    return [line for line in text.splitlines() if line.strip()]


def tokenize(a, sampler, prompts):
    """-> token ids of each prompt, which must fit into the model's context."""
    from nanomerci.loop.model import context, encode

    found = []
    for prompt in prompts:
        tokenizer = sampler.tokenizer
        tokens = tokenizer(prompt)["input_ids"] if a.raw else encode(tokenizer, prompt)
        if not tokens or not prompt.strip():
            raise UserError(f"prompt {prompt!r}: is empty; expected some text")
        if len(tokens) + sampler.max_new_tokens > context(sampler.model):
            raise UserError(
                f"--max_new_tokens {sampler.max_new_tokens}: with a prompt of {len(tokens)} tokens "
                f"that exceeds the model's context of {context(sampler.model)}"
            )
        found.append(tokens)
    return found


class Marker:
    """Grades responses where the correct answer is known: a problem of the task, or --gold."""

    def __init__(self, a, task, pool):
        self.gold, self.task, self.pool = a.gold, task, pool
        problems = (*task.train, *task.test) if task else ()
        self.problems = {problem.prompt: problem for problem in problems}

    def __call__(self, prompt, texts):
        """-> a Grade or None per response; its spans of noise."""
        from nanomerci.tasks import math

        problem = self.problems.get(prompt)
        jobs = []
        if self.gold:
            jobs = [(math.grade, self.gold, text) for text in texts]
        elif problem:
            jobs = [self.task.job(problem, text) for text in texts]
        if problem:
            noise = [self.task.noise(problem, text) for text in texts]
        else:
            noise = [math.noise(text) for text in texts]
        return self.pool.grade(jobs) or [None] * len(texts), noise


def respond(a, sampler, prompts, ids, run, marker):
    """Sample and print, 64 responses at once. -> what the heat map shows of each prompt."""
    import torch

    from nanomerci.loop.rollout import SampleOptions
    from nanomerci.runtime.log import progress_bar
    from nanomerci.view import heatmap

    typewriter = None
    if len(prompts) == a.n == 1 and not a.color:
        typewriter = Typewriter(sampler.tokenizer)
    together = max(1, 64 // a.n)
    for first in range(0, len(prompts), together):
        part = range(first, min(first + together, len(prompts)))
        row_B = torch.arange(first * a.n, (part[-1] + 1) * a.n)
        bar = nullcontext()
        if not typewriter:
            bar = progress_bar(len(row_B), "sample", "response")
        with bar as progress:
            told = progress and progress.update
            options = SampleOptions(row_B, progress=told, stream=typewriter)
            rollout = sampler([ids[i] for i in part], a.n, seed=a.seed, options=options)
        for i in part:
            rows = torch.arange(a.n, device=sampler.model.device) + (i - first) * a.n
            mine = rollout.rows(rows)
            texts = sampler.tokenizer.batch_decode(mine.responses(), skip_special_tokens=True)
            grades, noise = marker(prompts[i], texts)
            shown = None
            if a.heatmap or a.color:
                counter = heatmap.counter_for(a, sampler, run, ids[i])
                shown = heatmap.group(sampler, mine, prompts[i], counter, grades, noise)
            if len(prompts) > 1:
                print(f"\n=== {heatmap.visible(prompts[i])}")
            if typewriter:
                typewriter.end(texts[0])
                print(f"--- {grades[0].outcome}\n" if grades[0] else "", end="")
            else:
                show(a, texts, grades, shown)
            if shown:
                yield shown


def show(a, texts, grades, shown):
    """Print the responses to one prompt, in colour if asked for."""
    from nanomerci.view import heatmap

    low, high, place = heatmap.scale([shown]) if a.color else (0, 0, None)
    for g, (text, grade) in enumerate(zip(texts, grades, strict=True)):
        if a.n > 1 or grade:
            print(f"--- response {g + 1}" + (f": {grade.outcome}" if grade else ""))
        coloured = heatmap.ansi(shown["samples"][g], place) if place else heatmap.visible(text)
        print(coloured, flush=True)
    if place:
        print(heatmap.ansi_bar(low, high))


class Typewriter:
    """Prints a response token by token, made harmless for a terminal."""

    def __init__(self, tokenizer):
        from nanomerci.loop.rollout import StreamingDetokenizer
        from nanomerci.view.heatmap import visible

        self.add = StreamingDetokenizer(tokenizer, skip_special_tokens=True)
        self.visible, self.typed = visible, ""

    def __call__(self, row, token):
        self.type(self.add(token))

    def type(self, text):
        self.typed += text
        print(self.visible(text), end="", flush=True)

    def end(self, text):
        """The response is whole: what of it still waits, a character cut in two perhaps,
        follows.
        """
        self.type(text[len(self.typed) :])
        print()
