"""How good is a policy? pass@k, mean@k, greedy, coverage, each with a bootstrap interval over problems.

Axes: P problems, K samples a problem.
"""
import torch

from nanomerci import dist
from nanomerci.address import seed
from nanomerci.model import encode, eos_ids
from sample import generate


def pass_at_k(n, c, k):
    """Chance that k of n samples, c of them right, hold a right one: 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, eq. 1).

    Unbiased, unlike 1 - (1 - c/n)^k. Tensors or numbers; n >= k.
    """
    n, c, k = (torch.as_tensor(x, dtype=torch.float64) for x in (n, c, k))
    if (k > n).any():
        raise ValueError(f"pass@{int(k.max())} needs at least that many samples, got {int(n.min())}")
    log_choose = lambda a, b: torch.lgamma(a + 1) - torch.lgamma(b + 1) - torch.lgamma(a - b + 1)
    miss = (log_choose((n - c).clamp(min=k), k) - log_choose(n, k)).exp()
    return torch.where(n - c < k, 1.0, 1 - miss)


def bootstrap(value_P, draws=1000, level=0.95):
    """(low, high) of the mean of value_P when the problems are drawn again; the problems are the sample, not their answers."""
    value_P = torch.as_tensor(value_P, dtype=torch.float64)
    rng = torch.Generator().manual_seed(0)
    means = value_P[torch.randint(len(value_P), (draws, len(value_P)), generator=rng)].mean(1)
    return tuple(means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist())


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
def evaluate(model, tokenizer, task, problems, pool, *, K, max_new_tokens, temperature=1.0, top_p=1.0, greedy=True,
             run_seed=0, first=0, slots=512, progress=None):  # fmt: skip
    """Sample K answers (and a greedy one) to every problem and grade them, over all ranks. -> summary, a record a problem.

    The random numbers do not depend on the step, so two evaluations differ by the policy alone. first: the number of
    problems[0] in the whole set, if these are a part of it; a problem's random numbers are those of its number.
    """
    mine = range(dist.rank, len(problems), dist.world)
    prompts, eos = [encode(tokenizer, problems[i].prompt) for i in mine], eos_ids(model, tokenizer)

    def ask(n, temperature):
        rows = (first + torch.tensor(mine)).repeat_interleave(n) * n + torch.arange(n).repeat(len(mine))
        roll = generate(model, prompts, n, max_new_tokens=max_new_tokens, eos_id=eos, temperature=temperature, top_p=top_p,
                        seed=seed("evaluate", run_seed), rows=rows, slots=slots, progress=progress)  # fmt: skip
        texts = tokenizer.batch_decode(roll.responses(), skip_special_tokens=True)
        grades = pool.grade([task.job(problems[i], text) for i, text in zip((i for i in mine for _ in range(n)), texts)])
        return [(texts[p * n : p * n + n], grades[p * n : p * n + n]) for p in range(len(mine))]

    sampled, best = (ask(K, temperature), ask(1, 0.0) if greedy else [((), ())] * len(mine)) if mine else ([], [])
    records = [{"id": problems[i].id, "answers": texts, "outcomes": [g.outcome for g in grades],
                "greedy": list(best_text), "greedy_outcome": [g.outcome for g in best_grade]}
               for i, (texts, grades), (best_text, best_grade) in zip(mine, sampled, best)]  # fmt: skip
    order = {p.id: i for i, p in enumerate(problems)}
    records = sorted(dist.gather(records), key=lambda r: order[r["id"]])
    right_PK = torch.tensor([[o == "right" for o in r["outcomes"]] for r in records])
    greedy_P = torch.tensor([r["greedy_outcome"] == ["right"] for r in records]) if greedy else None
    return summary(right_PK, greedy_P), records
