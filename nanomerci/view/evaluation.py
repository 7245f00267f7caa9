"""`python sample.py MODEL --eval NAME -k K`: pass@k on a set of problems, in rounds that are
written down; the same command goes on after a kill.
"""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from nanomerci import tasks
from nanomerci.loop.evaluate import evaluate, summarise
from nanomerci.loop.model import context, encode
from nanomerci.loop.rollout import SampleOptions
from nanomerci.runtime import ranks
from nanomerci.runtime.checkpoint import newest, sync
from nanomerci.runtime.config import Config, UserError, closest, read
from nanomerci.runtime.log import log0, progress_bar
from nanomerci.tasks import math, sql
from nanomerci.tasks.graders.pool import Pool
from nanomerci.view.report import eval_names, write

TOGETHER = 1024  # responses asked for at once, on a rank; a kill loses at most these


class Records:
    """A JSONL file of an evaluation: its settings, a line per problem, its summary. What is whole
    in it need not be asked again.
    """

    def __init__(self, path, settings, together):
        self.path, lines = Path(path), []
        text = self.path.read_text() if self.path.exists() else ""
        with suppress(ValueError):  # the line that a kill cut short
            for line in text.splitlines():
                lines.append(json.loads(line))
        first = lines[0] if lines and isinstance(lines[0], dict) else {}
        before = first.get("settings", {})
        for name in [name for name in settings if text and before.get(name) != settings[name]]:
            was = f"{name} {before.get(name)}, now {settings[name]}" if before else "something else"
            raise UserError(f"--out {path}: holds another evaluation ({was}); name another file")
        self.done = [line for line in lines[1:] if "id" in line]
        del self.done[len(self.done) // together * together :]  # whole rounds: the rest again
        ranks.barrier()
        if ranks.rank == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            kept = [{"settings": settings}, *self.done]
            write(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def add(self, lines):
        """On the disk before the next round begins."""
        self.done += [line for line in lines if "id" in line]
        if ranks.rank == 0:
            with open(self.path, "a") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
            sync(self.path)


def command(a, sampler):
    """Evaluate and print the summary. a: the Request of view/ask.py; sampler: sample.Sampler."""
    folder = Path(a.model)
    task, k = held_out(a.eval, a.data_folder, a.limit)
    problems, K, run = task.test[: a.limit], a.k or k, (folder / "checkpoints").is_dir()
    place = newest(folder) / "model" if run else folder
    sampler = replace(sampler, max_new_tokens=max_length(a, sampler, problems, run))
    settings = {"eval": a.eval, "model": str(place), "k": K}
    settings |= {"temperature": a.temperature, "top_p": a.top_p, "top_k": a.top_k}
    length = sampler.max_new_tokens
    settings |= {"max_new_tokens": length, "seed": a.seed, "problems": len(problems)}
    origin = place.parent.name if run else folder.name
    name = f"eval-{origin}-{Path(a.eval).name.replace(':', '-')}-k{K}.jsonl"
    together = max(1, TOGETHER // K) * ranks.world
    file = Records(a.out or (folder if run else Path("runs")) / name, settings, together)
    log0("  ".join(f"{key} {value}" for key, value in settings.items()), f" ->  {file.path}")
    each = (K + 1) / ranks.world
    done, total = len(file.done), round(len(problems) * each)
    with (
        Pool(deadline=10.0) as pool,
        progress_bar(total, "evaluate", "response", round(done * each)) as progress,
    ):
        options = SampleOptions(slots=512, progress=progress.update)
        for first in range(done, len(problems), together):
            part = problems[first : first + together]
            how = {"K": K, "run_seed": a.seed, "first": first, "options": options}
            _, records = evaluate(sampler, task, part, pool, **how)
            pairs = zip(records, part, strict=True)
            file.add([{**record, "prompt": problem.prompt} for record, problem in pairs])
    metrics = summarise(file.done)
    file.add([{"summary": metrics}])
    if ranks.rank == 0:
        print(table(metrics))
    ranks.finish()


def held_out(name, data_folder="", limit=None):
    """`sample.py --eval NAME` -> task whose .test are the problems to ask, and the paper's number
    of responses per problem.

    NAME: a task that needs no data, a set of tasks/math.py, a hub id, a file of problems, a Spider
    or BIRD folder, reasoning_gym:NAME.
    """
    built_in = [task for task in tasks.names() if task not in ("math", "sql")]
    if name.partition(":")[0] in built_in:
        return tasks.load(Config(task=name)), 16
    place = Path(data_folder or ".") / name
    known = (*built_in, *math.SOURCES)
    try:
        if any(place.glob("dev*")):
            match = "spider" if (place / "database").is_dir() else "bird"
            return sql.SQL(test=sql.read_problems(place, "dev"), match=match), 16
        if name not in math.SOURCES and not place.exists() and "/" not in name:
            raise ValueError(
                f"unknown{closest(name, known)} Expected a path, or one of {', '.join(known)}"
            )
        task = math.Math(test=math.read_problems(name, data_folder, limit=limit))
        return task, getattr(math.SOURCES.get(name), "k", 16)
    except (ValueError, OSError) as error:
        raise UserError(f"--eval {name}: {str(error).splitlines()[0]}") from error


def max_length(a, sampler, problems, run):
    """Tokens per response: those asked for, the run's, or what the model's context leaves."""
    longest = max(len(encode(sampler.tokenizer, p.prompt)) for p in problems)
    most = context(sampler.model)
    limit = a.max_new_tokens or min(2048, most - longest)
    if run and not a.max_new_tokens:
        limit = read(Path(a.model) / "config.yaml")["max_new_tokens"]
    if limit < 1 or longest + limit > most:
        raise UserError(
            f"--max_new_tokens {limit}: with the longest prompt ({longest} tokens) that exceeds "
            f"the model's context of {most}"
        )
    return limit


def table(metrics):
    solved, problems = metrics["eval/solved"], metrics["eval/problems"]
    lines = [f"{solved} of {problems} problems solved at least once"]
    for name in eval_names(metrics):
        low, high = metrics[f"{name}_ci"]
        short = name.removeprefix("eval/")
        lines.append(f"  {short:12s} {metrics[name]:.3f}   [{low:.3f}, {high:.3f}]")
    return "\n".join(lines)
