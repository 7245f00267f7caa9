"""How good is a policy? pass@k, mean@k, greedy, coverage, each with a bootstrap interval over
problems.

`python sample.py MODEL --eval NAME -k K` ends in command() below.

Axes: P problems, K samples a problem.
"""

import json
import os
from pathlib import Path

import torch

from nanomerci import tasks
from nanomerci.address import seed
from nanomerci.loop.model import context, encode, eos_ids, load
from nanomerci.loop.warmstart import cache_folder
from nanomerci.runtime import ranks
from nanomerci.runtime.checkpoint import newest
from nanomerci.runtime.config import UserError, read
from nanomerci.runtime.log import bar, say
from nanomerci.sample import generate
from nanomerci.tasks.graders.pool import Pool

TOGETHER = 1024  # samples asked for at once, on a rank; a kill loses at most these


def pass_at_k(n, c, k):
    """Chance that k of n samples, c of them right, hold a right one: 1 - C(n-c, k) / C(n, k) (Chen
    et al. 2021, eq. 1).

    Unbiased, unlike 1 - (1 - c/n)^k. Tensors or numbers; n >= k.
    """
    n, c, k = (torch.as_tensor(x, dtype=torch.float64) for x in (n, c, k))
    if (k > n).any():
        raise ValueError(
            f"pass@{int(k.max())} needs at least that many samples, got {int(n.min())}"
        )
    log_choose = lambda a, b: torch.lgamma(a + 1) - torch.lgamma(b + 1) - torch.lgamma(a - b + 1)
    miss = (log_choose((n - c).clamp(min=k), k) - log_choose(n, k)).exp()
    return torch.where(n - c < k, 1.0, 1 - miss)


def bootstrap(value_P, draws=1000, level=0.95):
    """(low, high) of the mean of value_P when the problems are drawn again; the problems are the
    sample, not their answers.
    """
    value_P = torch.as_tensor(value_P, dtype=torch.float64)
    rng = torch.Generator().manual_seed(0)
    means = value_P[torch.randint(len(value_P), (draws, len(value_P)), generator=rng)].mean(1)
    return tuple(
        means.quantile(
            torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        ).tolist()
    )


def ks(K):
    return [2**i for i in range(K.bit_length()) if 2**i < K] + [K]


def summary(right_PK, greedy_P=None):
    """Right or wrong of every sample -> {metric: value, metric_ci: [low, high]}."""
    K = right_PK.shape[1]
    count_P = right_PK.sum(1)
    values = {f"eval/mean@{K}": right_PK.double().mean(1)}
    values |= {f"eval/pass@{k}": pass_at_k(K, count_P, k) for k in ks(K) if k > 1}
    if greedy_P is not None:
        values["eval/greedy"] = greedy_P.double()
    out = {}
    for name, value_P in values.items():
        out[name], out[f"{name}_ci"] = value_P.mean().item(), list(bootstrap(value_P))
    return out | {"eval/solved": int((count_P > 0).sum()), "eval/problems": len(right_PK)}


@torch.no_grad()
def evaluate(
    model,
    tokenizer,
    task,
    problems,
    pool,
    *,
    K,
    max_new_tokens,
    temperature=1.0,
    top_p=1.0,
    greedy=True,
    run_seed=0,
    first=0,
    slots=512,
    progress=None,
):
    """Sample K answers (and a greedy one) to every problem and grade them, over all ranks. ->
    summary, a record a problem.

    The random numbers do not depend on the step, so two evaluations differ by the policy alone.
    first: the number of problems[0] in the whole set, if these are a part of it; a problem's random
    numbers are those of its number.
    """
    mine = range(ranks.rank, len(problems), ranks.world)
    prompts, eos = [encode(tokenizer, problems[i].prompt) for i in mine], eos_ids(model, tokenizer)

    def ask(n, temperature):
        rows = (first + torch.tensor(mine)).repeat_interleave(n) * n + torch.arange(n).repeat(
            len(mine)
        )
        roll = generate(
            model,
            prompts,
            n,
            max_new_tokens=max_new_tokens,
            eos_id=eos,
            temperature=temperature,
            top_p=top_p,
            seed=seed("evaluate", run_seed),
            rows=rows,
            slots=slots,
            progress=progress,
        )
        texts = tokenizer.batch_decode(roll.responses(), skip_special_tokens=True)
        grades = pool.grade(
            [
                task.job(problems[i], text)
                for i, text in zip((i for i in mine for _ in range(n)), texts)
            ]
        )
        return [(texts[p * n : p * n + n], grades[p * n : p * n + n]) for p in range(len(mine))]

    sampled, best = (
        (ask(K, temperature), ask(1, 0.0) if greedy else [((), ())] * len(mine))
        if mine
        else ([], [])
    )
    records = [
        {
            "id": problems[i].id,
            "answers": texts,
            "outcomes": [g.outcome for g in grades],
            "greedy": list(best_text),
            "greedy_outcome": [g.outcome for g in best_grade],
        }
        for i, (texts, grades), (best_text, best_grade) in zip(mine, sampled, best)
    ]
    order = {p.id: i for i, p in enumerate(problems)}
    records = sorted(ranks.gather(records), key=lambda r: order[r["id"]])
    return summarise(records), records


def summarise(records):
    """Records of problems -> summary."""
    right_PK = torch.tensor([[o == "right" for o in r["outcomes"]] for r in records])
    asked = all(r["greedy_outcome"] for r in records)
    greedy_P = torch.tensor([r["greedy_outcome"] == ["right"] for r in records]) if asked else None
    return summary(right_PK, greedy_P)


# ---- the command


class Records:
    """A JSONL file of an evaluation: its settings, a line a problem, its summary. What is whole in
    it need not be asked again.
    """

    def __init__(self, path, settings, together):
        self.path, self.done, lines = Path(path), [], []
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                try:
                    lines.append(json.loads(line))
                except ValueError:  # the line that a kill cut short
                    break
            before = lines[0].get("settings") if lines and isinstance(lines[0], dict) else None
            changed = [name for name in settings if (before or {}).get(name) != settings[name]]
            if changed and lines:
                was = (
                    f"{changed[0]} {before.get(changed[0])}, now {settings[changed[0]]}"
                    if before
                    else "something else"
                )
                raise UserError(
                    f"--out {path}: holds another evaluation ({was}); name another file"
                )
            self.done = [line for line in lines[1:] if "id" in line]
            self.done = self.done[
                : len(self.done) // together * together
            ]  # whole rounds, so that the rest is cut as it would be
        ranks.barrier()
        if ranks.rank == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            scratch = self.path.with_suffix(".partial")
            scratch.write_text(
                "".join(json.dumps(line) + "\n" for line in [{"settings": settings}, *self.done])
            )
            os.replace(scratch, self.path)

    def add(self, lines):
        """On the disk before the next round begins."""
        self.done += [line for line in lines if "id" in line]
        if ranks.rank == 0:
            with open(self.path, "a") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())


def command(a):
    """Evaluate a model on a set, in rounds that are written down; the same command goes on after a
    kill. Prints the summary.

    a: eval, model, k, limit, out, data_folder, temperature, top_p, max_new_tokens, seed, device."""
    device, folder = ranks.start(a.device), Path(a.model)
    task, k = tasks.held_out(a.eval, cache_folder(), a.data_folder, a.limit)
    problems, K, run = task.test[: a.limit], a.k or k, (folder / "checkpoints").is_dir()
    place = newest(folder) / "model" if run else folder
    model, tokenizer = load(
        a.model, device, torch.float32 if device.type == "cpu" else torch.bfloat16
    )
    longest = max(len(encode(tokenizer, p.prompt)) for p in problems)
    limit = a.max_new_tokens or (
        read(folder / "config.yaml")["max_new_tokens"]
        if run
        else min(2048, context(model) - longest)
    )
    if limit < 1 or longest + limit > context(model):
        raise UserError(
            f"--max_new_tokens {limit}: with the longest prompt ({longest} tokens) that "
            "exceeds the model's context of "
            f"{context(model)}"
        )
    settings = {
        "eval": a.eval,
        "model": str(place),
        "k": K,
        "temperature": a.temperature,
        "top_p": a.top_p,
        "max_new_tokens": limit,
        "seed": a.seed,
        "problems": len(problems),
    }
    name = f"{place.parent.name if run else folder.name}-{Path(a.eval).name.replace(':', '-')}-k{K}.jsonl"
    together = max(1, TOGETHER // K) * ranks.world
    file = Records(a.out or (folder if run else Path("runs")) / f"eval-{name}", settings, together)
    say("  ".join(f"{key} {value}" for key, value in settings.items()), f" ->  {file.path}")
    done, each = len(file.done), (K + 1) / ranks.world
    with (
        Pool(deadline=10.0) as pool,
        bar(round(len(problems) * each), "evaluate", "answer", round(done * each)) as progress,
    ):
        for first in range(done, len(problems), together):
            part = problems[first : first + together]
            records = evaluate(
                model,
                tokenizer,
                task,
                part,
                pool,
                K=K,
                max_new_tokens=limit,
                temperature=a.temperature,
                top_p=a.top_p,
                run_seed=a.seed,
                first=first,
                progress=progress.update,
            )[1]
            file.add(
                [{**record, "prompt": problem.prompt} for record, problem in zip(records, part)]
            )
    metrics = summarise(file.done)
    file.add([{"summary": metrics}])
    if ranks.rank == 0:
        print(table(metrics))
    ranks.finish()


def table(metrics):
    lines = [
        f"{metrics['eval/solved']} of {metrics['eval/problems']} problems solved at least once"
    ]
    for name in (k.removesuffix("_ci") for k in metrics if k.endswith("_ci")):
        low, high = metrics[f"{name}_ci"]
        lines.append(
            f"  {name.removeprefix('eval/'):12s} {metrics[name]:.3f}   [{low:.3f}, {high:.3f}]"
        )
    return "\n".join(lines)
