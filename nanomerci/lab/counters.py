"""How near does a counter's 1/n come to the exact one, and how well does it tell rare strategies
from common ones? Twelve counters, and surprisal for comparison, in one table.

    python train.py toy_sql --keep_checkpoints 1000 --save_every 10 --out runs/counters
    python -m nanomerci.lab.counters runs/counters --seeds 3

All are shown the same visits in the same order: responses to 32 prompts, first by the initial
policy (8 x 8 responses per prompt, learned in 3 passes), then by the run's policies from first to
last (16 rounds of 8), as in training. Measured are

* Spearman and slope: rank correlation of the estimate with 1/n, and slope of log on log, over all
  prefixes seen 1-100 times;
* AUC: of two responses of the initial policy to the same prompt, one in the rare robust idiom and
  one in the common one, how often does the rare one have the larger trajectory bonus? It is taken
  after the first stage, for the prompts that were counted and for others, which are most of those
  of a training step. On a run of toy_sql_chatty counts and surprisal differ.

Axes: P prompts, G responses per prompt, B = P*G rows, T token positions; N visits, L layers, D
width, C coins.
"""

from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import torch
import tyro
from tyro.conf import Positional

from nanomerci import cfn, merci, tasks
from nanomerci.address import address, seed
from nanomerci.bonuses import elliptical, rnd
from nanomerci.counts import Table, agreement, prefixes
from nanomerci.loop.model import encode, eos_ids, load
from nanomerci.loop.rollout import Rollout
from nanomerci.loop.saved_run import Run
from nanomerci.runtime.config import UserError, run_command
from nanomerci.runtime.log import log0, progress_bar
from nanomerci.sample import generate
from nanomerci.view import report

PROMPTS, OTHERS, FIRST, ROUNDS, G = 32, 128, 8, 16, 8
TOP, RUN = 0.3, 2  # of the bonus in the AUC, as in the recipes
PICTURES = Path(__file__).parents[2] / "docs/pictures"
TABLE = "| {} | {} | {:.2f} | {:.2f} | {:.3f} | {:.3f} |"
HEAD = ("", "counter", "Spearman", "slope", "AUC, counted prompts", "AUC, others")


@dataclass
class Visits:
    roll: Rollout
    layer_LND: torch.Tensor
    """States of the initial policy: embeddings, every layer, the last normed."""
    address_N: torch.Tensor
    rare_PG: torch.Tensor

    @property
    def key_N(self):
        """Hashes of the prefixes."""
        return prefixes(self.roll.tokens_BT)[self.roll.mask_BT > 0]

    @property
    def surprisal_N(self):
        return -self.roll.logp_BT[self.roll.mask_BT > 0]


# ---- the visits
@torch.no_grad()
def visit(initial, policy, tokenizer, task, problem_P, G, c, stage):
    """Responses of a policy, and the states that the initial one has in them."""
    ids = [encode(tokenizer, problem.prompt) for problem in problem_P]
    options = {"max_new_tokens": c.max_new_tokens, "eos_id": eos_ids(policy, tokenizer)}
    roll = generate(policy, ids, G, seed=seed("ladder", stage), **options)
    inside_BT, layers = roll.mask_BT > 0, []
    for rows in torch.arange(len(roll.tokens_BT)).split(512):
        tokens_bT = roll.tokens_BT[rows]
        seen = initial.base_model(tokens_bT, use_cache=False, output_hidden_states=True)
        states = [*seen.hidden_states[:-1], seen.last_hidden_state]
        layers.append(torch.stack([h[inside_BT[rows]] for h in states]))
    place_BT = torch.arange(roll.tokens_BT.numel()).view_as(roll.tokens_BT)
    text_B = tokenizer.batch_decode(roll.responses(), skip_special_tokens=True)
    rare_B = [task.rare(problem_P[i // G], text) for i, text in enumerate(text_B)]
    address_N = address("ladder", stage, place_BT[inside_BT])
    return Visits(roll, torch.cat(layers, 1), address_N, torch.tensor(rare_B).view(-1, G))


def collect(run):
    """-> the stages [Visits] in order; for the AUC the same prompts and others, Visits each."""
    steps, c = sorted(run.folder.glob("checkpoints/step_*")), run.options
    initial, tokenizer = load(steps[0] / "model")
    task = tasks.load(c)
    few = tasks.pick(task.train, range(PROMPTS), c.seed)
    others = tasks.pick(task.train, range(5000, 5000 + OTHERS), c.seed)
    others = [problem for problem in others if problem not in few]
    stages = [visit(initial, initial, tokenizer, task, few, G, c, i) for i in range(FIRST)]
    for i in range(ROUNDS):
        policy, _ = load(steps[i * (len(steps) - 1) // (ROUNDS - 1)] / "model")
        stages.append(visit(initial, policy, tokenizer, task, few, G, c, FIRST + i))
    same = visit(initial, initial, tokenizer, task, few, 128, c, -1)
    return stages, (same, visit(initial, initial, tokenizer, task, others, 32, c, -2))


# ---- the yardsticks
def evaluate(make, data, s):
    """One counter over all visits. -> Spearman, slope, AUC on counted and on other prompts."""
    (stages, held), (counter, features) = data, make(s)
    first = stages[:FIRST]
    address_N = torch.cat([v.address_N for v in first])
    counter.pretrain(torch.cat([features(v) for v in first]), address_N, 3)
    aucs = [auc(v, counter.score(features(v))) for v in held]
    for i, v in enumerate(stages[FIRST:]):
        counter.update(features(v), v.address_N, 1024, i)
    key_N = torch.cat([v.key_N for v in stages])
    key_N, inverse_N, n_N = key_N.unique(return_inverse=True, return_counts=True)
    invn_N = torch.zeros(len(key_N))
    invn_N[inverse_N] = torch.cat([counter.score(features(v)).float() for v in stages])
    return *agreement(n_N, invn_N).values(), *aucs


def auc(visits, invn_N):
    """Pairs of a rare and a common response to one prompt: the share in which the rare one's bonus
    is larger (ties half).
    """
    mask_BT, rare_PG = visits.roll.mask_BT, visits.rare_PG
    invn_BT = torch.zeros_like(mask_BT)
    invn_BT[mask_BT > 0] = invn_N.float()
    kept_BT = merci.coherent(merci.percentile(invn_BT, mask_BT, TOP), RUN)
    bonus_PG = merci.trajectory_bonus(invn_BT, kept_BT, mask_BT).view_as(rare_PG)
    ahead_PGG = bonus_PG[:, :, None] - bonus_PG[:, None, :]
    pair_PGG = rare_PG[:, :, None] & ~rare_PG[:, None, :]
    return float((1 + ahead_PGG[pair_PGG].sign()).double().mean() / 2)


# ---- the counters
class Exact:
    """Exact counts of keys, the features; or (coins > 0) the mean of so many coins per visit of a
    key, as an ideal CFN would know it.
    """

    def __init__(self, coins=0):
        self.coins, self.visits, self.heads = coins, Table(), Table()

    def update(self, key_N, address_N, *_):
        self.visits.add_keys(key_N)
        if self.coins:
            heads_NC = cfn.draw_coins(address_N, self.coins) > 0
            self.heads.add_keys(self.coin_keys(key_N)[heads_NC])

    pretrain = update

    def score(self, key_N):
        n_N = self.visits.times(key_N).clamp(min=1)
        if not self.coins:
            return 1 / n_N
        heads_NC = self.heads.times(self.coin_keys(key_N))
        return cfn.inverse_count(2 * heads_NC / n_N[:, None] - 1)  # never visited: all -1, 1/n = 1

    def coin_keys(self, key_N):
        return address(key_N[:, None], torch.arange(self.coins))


class Memoryless:
    """The features are the estimate."""

    def update(self, *_):
        pass

    pretrain = update

    def score(self, value_N):
        return value_N


def last(v):
    return v.layer_LND[-1]


def layers(v):
    return v.layer_LND.transpose(0, 1).flatten(1)


def whitened(stages, floor=1e-3):
    """States decorrelated and scaled to variance 1: every direction counts alike, not only the few
    that vary most.
    """
    x_ND = torch.cat([last(v) for v in stages])
    values_D, vectors_DD = torch.linalg.eigh(torch.cov(x_ND.T).double())
    map_DD = (vectors_DD * (values_D + floor * values_D.mean()).rsqrt()).float()
    return lambda v: (last(v) - x_ND.mean(0)) @ map_DD


def variants(stages):
    """-> {name: seed -> (counter, Visits -> features)}."""
    white, width = whitened(stages[:FIRST]), stages[0].layer_LND.shape[-1]
    keys = attrgetter("key_N")

    def net(features=last, kind=cfn.Counter, **options):
        size = features(stages[0]).shape[1]
        return lambda s: (kind(size, **{"hidden": 128, "seed": s} | options), features)

    def random_relu(s):
        rng = torch.Generator().manual_seed(s)
        weight_DH = torch.randn(width, 1024, generator=rng) / width**0.5
        bias_H = torch.randn(1024, generator=rng)
        return elliptical.Counter(1024), lambda v: (white(v) @ weight_DH + bias_H).relu()

    def simhash(bits):
        """The signs of random projections as a key: states that look alike share it, the fewer the
        bits the more of them.
        """

        def make(s):
            plane_DK = torch.randn(width, bits, generator=torch.Generator().manual_seed(s))
            place_K = torch.arange(bits)
            return Exact(), lambda v: ((white(v) @ plane_DK > 0).long() << place_K).sum(1)

        return make

    return {
        "CFN as in toy_sql (width 128, 20 coins)": net(),
        "without the random prior": net(prior=False),
        "features: embeddings and all layers": net(layers),
        "features decorrelated (whitened)": net(white),
        "RND": net(kind=rnd.Counter),
        "elliptical, 96 features": lambda s: (elliptical.Counter(width), last),
        "elliptical, 1024 random features of the whitened state": random_relu,
        "exact counts of 8 sign bits of the whitened state": simhash(8),
        "exact counts of 16 sign bits": simhash(16),
        "exact counts of 32 sign bits": simhash(32),
        "a table of prefixes, 20 coins each (the ideal CFN)": lambda s: (Exact(20), keys),
        "exact counts of prefixes": lambda s: (Exact(), keys),
        "surprisal (remembers nothing)": lambda s: (Memoryless(), attrgetter("surprisal_N")),
    }


# ---- the command
def picture(rows, out):
    """What a counter gains in exactness and what it loses: Spearman against the AUC on other
    prompts.
    """
    title = "counters by two yardsticks, as numbered (orange: exact counts)"
    with report.drawing(out, title, "Spearman of the estimate with the exact 1/n") as axes:
        for number, (name, spearman, _, _, other) in enumerate(rows, 1):
            colour = report.BLUE
            if "exact counts" in name or "table" in name:
                colour = report.ORANGE
            axes.plot(spearman, other, "o", markersize=4, color=colour)
            # where points crowd, labels on both sides
            side, shift = ("left", (4, 2)) if number % 2 else ("right", (-4, -8))
            how = {"textcoords": "offset points", "fontsize": 6, "ha": side}
            axes.annotate(str(number), (spearman, other), xytext=shift, **how)
        axes.set_ylabel("AUC, other prompts")


def main(run: Positional[str], out: Path = PICTURES, seeds: int = 3):
    """Counters compared: nearness to exact counts, and rare against common responses.

    Args:
        run: folder of a finished run of toy_sql or toy_sql_chatty that kept its checkpoints
        out: folder for counters.md and counters.png
        seeds: seeds of every counter
    """
    trained = Run.of(run)
    kept = list(trained.folder.glob("checkpoints/step_*")) if trained else ()
    if len(kept) < 3 or trained.options.task not in ("toy_sql", "toy_sql_chatty"):
        raise UserError(
            f"{run}: is not a run of toy_sql with its checkpoints; make one with "
            "python train.py toy_sql --keep_checkpoints 1000 --save_every 10"
        )
    torch.set_num_threads(1)
    data, rows = collect(trained), []
    table = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    counters = variants(data[0])
    with progress_bar(len(counters), "counters", "counter") as progress:
        for name, make in counters.items():
            each = [evaluate(make, data, s) for s in range(seeds)]
            rows.append((name, *torch.tensor(each).mean(0).tolist()))
            table.append(TABLE.format(len(rows), *rows[-1]))
            log0(table[-1])
            progress.update()
    out.mkdir(parents=True, exist_ok=True)
    (out / "counters.md").write_text("\n".join(table) + "\n")
    picture(rows, out / "counters.png")


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, prog="python -m nanomerci.lab.counters"))
