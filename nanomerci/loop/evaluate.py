"""How good is a policy? pass@k, mean@k, greedy, coverage, each with a bootstrap interval over
problems.

Axes: P problems, K responses per problem.
"""

from dataclasses import replace

import torch

from nanomerci.address import seed
from nanomerci.loop.model import encode
from nanomerci.loop.rollout import SampleOptions
from nanomerci.runtime import ranks


def pass_at_k(n, c, k):
    """Chance that k of n responses, c of them correct, hold a correct one: 1 - C(n-c, k) / C(n, k)
    (Chen et al. 2021, eq. 1).

    Unbiased, unlike 1 - (1 - c/n)^k. Tensors or numbers; n >= k.
    """
    n, c, k = (torch.as_tensor(x, dtype=torch.float64) for x in (n, c, k))
    if (k > n).any():
        raise ValueError(
            f"pass@{int(k.max())} needs at least that many samples, got {int(n.min())}"
        )

    def log_choose(a, b):
        return torch.lgamma(a + 1) - torch.lgamma(b + 1) - torch.lgamma(a - b + 1)

    miss = (log_choose((n - c).clamp(min=k), k) - log_choose(n, k)).exp()
    return torch.where(n - c < k, 1.0, 1 - miss)


def bootstrap(value_P, draws=1000, level=0.95):
    """(low, high) of the mean of value_P when the problems, not their answers, are drawn again."""
    value_P = torch.as_tensor(value_P, dtype=torch.float64)
    rng = torch.Generator().manual_seed(0)
    means = value_P[torch.randint(len(value_P), (draws, len(value_P)), generator=rng)].mean(1)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    return tuple(means.quantile(ends).tolist())


def ks(K):
    return [2**i for i in range(K.bit_length()) if 2**i < K] + [K]


def summary(right_PK, greedy_P=None):
    """Correct or not, of every response -> {metric: value, metric_ci: [low, high]}."""
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
def evaluate(sampler, task, problems, pool, *, K, greedy=True, run_seed=0, first=0, options=None):
    """Sample K responses (and a greedy one) per problem and grade them, over all ranks. ->
    summary, a record per problem.

    sampler: sample.Sampler. The random numbers do not depend on the step, so two evaluations differ
    by the policy alone. first: the number of problems[0] in the whole set, if these are a part of
    it; a problem's random numbers are those of its number.
    """
    mine = range(ranks.rank, len(problems), ranks.world)
    prompts = [encode(sampler.tokenizer, problems[i].prompt) for i in mine]
    number_P = first + torch.tensor(mine)
    options = options or SampleOptions(slots=512)

    def ask(n, temperature):
        row_B = number_P.repeat_interleave(n) * n + torch.arange(n).repeat(len(mine))
        how = {"options": replace(options, rows=row_B), "temperature": temperature}
        rollout = sampler(prompts, n, seed=seed("evaluate", run_seed), **how)
        texts = sampler.tokenizer.batch_decode(rollout.responses(), skip_special_tokens=True)
        problem_B = [problems[i] for i in mine for _ in range(n)]
        grades = pool.grade([task.job(p, text) for p, text in zip(problem_B, texts, strict=True)])
        return [(texts[i : i + n], grades[i : i + n]) for i in range(0, len(texts), n)]

    nothing = [((), ())] * len(mine)
    sampled = ask(K, None) if mine else []
    best = ask(1, 0.0) if mine and greedy else nothing
    records = [
        {
            "id": problems[i].id,
            "answers": texts,
            "outcomes": [g.outcome for g in grades],
            "greedy": list(best_text),
            "greedy_outcome": [g.outcome for g in best_grade],
        }
        for i, (texts, grades), (best_text, best_grade) in zip(mine, sampled, best, strict=True)
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
