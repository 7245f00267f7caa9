"""`python sample.py`: the words of the command line, and what they ask for: responses, a heat map,
an evaluation.

Nothing heavy is imported before the command line is known to be right: loading torch takes seconds.
"""

import sys
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from nanomerci.runtime import config
from nanomerci.runtime.config import UserError

USAGE = """\
Sample from a model: print its responses, or colour their tokens by how novel the states are.
  python sample.py runs/toy_sql-seed0                      newest model, first held-out problem
  python sample.py runs/toy_sql-seed0 --heatmap out.html   the same as a page, red = novel
  python sample.py HuggingFaceTB/SmolLM2-135M-Instruct "What is 27 + 85?" -n 4
  python sample.py MODEL < prompts.txt                     one prompt per line
  python sample.py MODEL --eval math500 -k 16 --temperature 0.6 --top_p 0.95"""


Own = Annotated[int, config.Allowed("1 or more", lambda x: x is None or x >= 1)]


# ---- the options
@dataclass(frozen=True, kw_only=True)
class What:
    """What to sample from"""

    model: str = ""
    """Hugging Face folder or hub id, or a run folder: its newest model."""
    prompt: str = ""
    """The prompt; without it: --file, a pipe, or a run's first held-out problem."""
    n: Own = None
    """Responses per prompt; without it 1, or 4 for a picture."""
    file: str = ""
    """File of prompts, one per line."""
    raw: bool = False
    """No chat template: the model continues the prompt."""


@dataclass(frozen=True, kw_only=True)
class How:
    """How to sample"""

    max_new_tokens: Own = None
    """Maximum response length in tokens; without it the run's, or 256."""
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
    """For a model without a run, a counter is trained on this many other responses."""


@dataclass(frozen=True, kw_only=True)
class Test:
    """Evaluation: pass@k, mean@k, greedy, each with an interval; resumes where it was killed"""

    eval: str = ""
    """Task, aime24, math500 ... (tasks/math.py), file of problems, or Spider or BIRD folder."""
    k: Own = None
    """Responses per problem; without it the paper's number for the set, else 16."""
    limit: Own = None
    """Only this many problems, the first; without it all."""
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
    """-> Request"""
    if "" in argv:
        raise UserError("prompt '': is empty; expected some text")
    places = "model", "prompt"
    given, _ = config.command_line(Request(), argv, "sample.py", USAGE, places=places)
    a = Request(**given)
    if not a.model:
        raise UserError("sample.py: too many or too few arguments; see --help")
    config.check_ranges(a)
    for file in map(Path, a.heatmap):
        if file.suffix != ".html":
            remedy = "for a picture take a screenshot of that page"
            raise UserError(f"--heatmap {file}: expected a name that ends in .html; {remedy}")
        if not file.absolute().parent.is_dir():
            raise UserError(f"--heatmap {file}: there is no folder {file.parent}")
    if a.prompt and a.file:
        raise UserError(f"--file {a.file}: a prompt is given too; expected one of the two")
    pictures = a.heatmap or a.color
    return replace(a, n=a.n or (4 if pictures else 1))


# ---- what is asked for
def main(a, sampler_class, check):
    """Answer a Request with sample.Sampler and sample.check_model, which are handed down."""
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
        ways = 'give one in quotes ("What is 27 + 85?"), --file FILE, or pipe lines in'
        raise UserError(f"no prompt: {ways}")
    prompts = prompts or [task.test[0].prompt]
    if a.gold and len(prompts) > 1:
        raise UserError(f"--gold {a.gold}: is the answer to one prompt, got {len(prompts)} prompts")
    longest = a.max_new_tokens or (run.options.max_new_tokens if run else 256)
    sampler = open_model(a, sampler_class, check, longest)
    if not sampler.tokenizer.chat_template and not a.raw:
        log0(
            f"{a.model} is a base model (no chat template): it continues the prompt as it stands, "
            "so word it as a text whose next words are the answer; --raw silences this note"
        )
    asked = tokenize(a, sampler, prompts)
    with Pool(deadline=10.0) as pool:
        groups = list(respond(a, sampler, asked, run, partial(mark, a, task, pool)))
    for file in a.heatmap:
        heatmap.draw(file, f"Novelty of tokens: {Path(a.model).name}", groups, run)
        log0(f"heat map: {file}")


def read_prompts(a):
    """The prompt given, the lines of --file or of a pipe; [] if there is none."""
    if a.prompt:
        return [a.prompt]
    text = ""
    try:
        if a.file:
            text = Path(a.file).read_text()
        elif sys.stdin and not sys.stdin.isatty():
            text = sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{a.file or 'standard input'}: cannot be read ({error})") from None
    return [line for line in text.splitlines() if line.strip()]


def tokenize(a, sampler, prompts):
    """-> [(prompt, token ids)]; they must fit into the model's context."""
    from nanomerci.loop.model import context, encode

    found, tokenizer, limit = [], sampler.tokenizer, context(sampler.model)
    for prompt in prompts:
        tokens = tokenizer(prompt)["input_ids"] if a.raw else encode(tokenizer, prompt)
        if not tokens or not prompt.strip():
            raise UserError(f"prompt {prompt!r}: is empty; expected some text")
        if len(tokens) + sampler.max_new_tokens > limit:
            raise UserError(
                f"--max_new_tokens {sampler.max_new_tokens}: with a prompt of {len(tokens)} tokens "
                f"that exceeds the model's context of {limit}"
            )
        found.append((prompt, tokens))
    return found


def mark(a, task, pool, prompt, texts):
    """-> a Grade per response if the correct answer is known, from the task or --gold, else None;
    its spans of noise.
    """
    from nanomerci.tasks import math

    known = (*task.train, *task.test) if task else ()
    problem, jobs = next((p for p in known if p.prompt == prompt), None), []
    noise = [task.noise(problem, text) if problem else math.noise(text) for text in texts]
    if a.gold:
        jobs = [(math.grade, a.gold, text) for text in texts]
    elif problem:
        jobs = [task.job(problem, text) for text in texts]
    return pool.grade(jobs) or [None] * len(texts), noise


def respond(a, sampler, asked, run, grading):
    """Sample and print, 64 responses at once. asked: prompts with their token ids. -> what the heat
    map shows of each prompt.
    """
    import torch

    from nanomerci.loop.rollout import SampleOptions
    from nanomerci.runtime.log import progress_bar
    from nanomerci.view import heatmap

    alone = len(asked) == a.n == 1 and not a.color
    typewriter = heatmap.Typewriter(sampler.tokenizer) if alone else None
    together = max(1, 64 // a.n)
    for first in range(0, len(asked), together):
        part = asked[first : first + together]
        row_B = torch.arange(first * a.n, (first + len(part)) * a.n)
        bar = nullcontext()
        if not alone:
            bar = progress_bar(len(row_B), "sample", "response")
        with bar as progress:
            told = progress and progress.update
            options = SampleOptions(row_B, progress=told, stream=typewriter)
            rollout = sampler([ids for _, ids in part], a.n, seed=a.seed, options=options)
        for i, (prompt, ids) in enumerate(part):
            mine = rollout.rows(torch.arange(i * a.n, (i + 1) * a.n))
            texts = sampler.tokenizer.batch_decode(mine.responses(), skip_special_tokens=True)
            grades, noise = grading(prompt, texts)
            shown = None
            if a.heatmap or a.color:
                counter = heatmap.counter_for(a, sampler, run, ids)
                shown = heatmap.group(sampler, mine, prompt, counter, grades, noise)
            if len(asked) > 1:
                print(f"\n=== {heatmap.visible(prompt)}")
            if typewriter:
                typewriter.end(texts[0], grades[0])
            else:
                heatmap.show(a, texts, grades, shown)
            if shown:
                yield shown
