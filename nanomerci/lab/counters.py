"""How near can the counter's 1/n come to the exact one, and what is it worth when it does? A ladder
of counters, one table.

    python train.py toy_sql --keep_checkpoints 1000 --save_every 10 --out runs/ladder
    python -m nanomerci.lab.counters runs/ladder [--out docs/pictures] [--seeds 3]

All counters are shown the same visits in the same order: answers to 32 questions, first by the
initial policy (8 x 8 samples a question, learned in 3 passes), then by the run's policies from
first to last (16 rounds of 8 samples), as in training. Then

* Spearman and slope: rank correlation of the estimate with 1/n, and slope of log on log, over all
prefixes seen 1-100 times; * AUC: of two answers of the initial policy to the same question, one in
the rare robust idiom and one in the common one, how often has the rare one the larger trajectory
bonus? After the first stage, where it matters: for the questions that were counted, and for others,
which is what a training step mostly meets.

Axes: P prompts, G samples a prompt, B = P*G rows, T token positions; N visits, L layers, D width, C
coins.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from nanomerci import cfn, merci, tasks
from nanomerci.address import address, seed, uniform
from nanomerci.bonuses import rivals
from nanomerci.counts import agreement, prefixes
from nanomerci.loop.model import encode, eos_ids, load
from nanomerci.loop.rollout import Rollout
from nanomerci.loop.warmstart import cache_folder
from nanomerci.runtime.config import UserError, run_command
from nanomerci.runtime.log import bar, say
from nanomerci.sample import generate
from nanomerci.view import report
from nanomerci.view.heatmap import Run

QUESTIONS, OTHERS, FIRST, ROUNDS, G = 32, 128, 8, 16, 8


@dataclass
class Visits:
    roll: Rollout
    layer_LND: (
        torch.Tensor
    )  # hidden states of the frozen trunk: embeddings, every layer, the last after the final norm
    key_N: torch.Tensor  # hash of the prefix
    address_N: torch.Tensor
    rare_PG: torch.Tensor


def main():
    p = argparse.ArgumentParser(
        prog="python -m nanomerci.lab.counters", description=__doc__.split("\n")[0]
    )
    p.add_argument("run", help="folder of a finished run of toy_sql that kept its checkpoints")
    p.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "docs/pictures")
    p.add_argument("--seeds", type=int, default=3, help="seeds of every counter")
    a = p.parse_args()
    run = Run.of(a.run)
    if (
        run is None
        or run.options.task != "toy_sql"
        or len(list(run.folder.glob("checkpoints/step_*"))) < 3
    ):
        raise UserError(
            f"{a.run}: is no run of toy_sql with its checkpoints; make one with "
            "python train.py toy_sql --keep_checkpoints 1000 --save_every 10"
        )
    torch.set_num_threads(1)
    data, rows = collect(run), []
    table = [
        "| | counter | Spearman | slope | AUC, counted questions | AUC, other questions | "
        "seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    counters = rungs(data)
    with bar(len(counters), "counters", "counter") as progress:
        for name, make in counters:
            rows.append(
                (
                    name,
                    *torch.tensor([climb(make, data, s) for s in range(a.seeds)]).mean(0).tolist(),
                )
            )
            table.append(
                "| {} | {} | {:.2f} | {:.2f} | {:.3f} | {:.3f} | {:.1f} |".format(
                    len(rows), *rows[-1]
                )
            )
            say(table[-1])
            progress.update()
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "ladder.md").write_text("\n".join(table) + "\n")
    picture(rows, a.out / "ladder.png")


@torch.no_grad()
def collect(run):
    """-> the stages [Visits] in order, and answers for the AUC: {"same": Visits, "new": Visits}."""
    steps = sorted(run.folder.glob("checkpoints/step_*"))
    trunk, tokenizer = load(steps[0] / "model")
    task = tasks.load(run.options, cache_folder())
    few, others = (
        tasks.pick(task.train, range(*numbers), run.options.seed)
        for numbers in ((QUESTIONS,), (5000, 5000 + OTHERS))
    )

    others = [problem for problem in others if problem not in few]

    def visit(policy, problem_P, G, stage):
        roll = generate(
            policy,
            [encode(tokenizer, problem.prompt) for problem in problem_P],
            G,
            eos_id=eos_ids(policy, tokenizer),
            max_new_tokens=run.options.max_new_tokens,
            seed=seed("ladder", stage),
        )
        inside_BT, layers = roll.mask_BT > 0, []
        for rows in torch.arange(len(roll.tokens_BT)).split(512):
            seen = trunk.base_model(
                roll.tokens_BT[rows], use_cache=False, output_hidden_states=True
            )
            layers.append(
                torch.stack(
                    [h[inside_BT[rows]] for h in (*seen.hidden_states[:-1], seen.last_hidden_state)]
                )
            )
        place_BT = torch.arange(roll.tokens_BT.numel()).view_as(roll.tokens_BT)
        text_B = tokenizer.batch_decode(roll.responses(), skip_special_tokens=True)
        rare_B = [task.rare(problem_P[i // G], text) for i, text in enumerate(text_B)]
        return Visits(
            roll,
            torch.cat(layers, 1),
            prefixes(roll.tokens_BT)[inside_BT],
            address("ladder", stage, place_BT[inside_BT]),
            torch.tensor(rare_B).view(-1, G),
        )

    stages = [visit(trunk, few, G, i) for i in range(FIRST)]
    for i in range(ROUNDS):
        policy, _ = load(steps[i * (len(steps) - 1) // (ROUNDS - 1)] / "model")
        stages.append(visit(policy, few, G, FIRST + i))
    return stages, {"same": visit(trunk, few, 128, -1), "new": visit(trunk, others, 32, -2)}


def climb(make, data, s):
    """One counter over all visits. -> Spearman, slope, AUC on counted and on other questions,
    seconds of counting.
    """
    (stages, held), (counter, look) = data, make(s)
    started = time.perf_counter()
    first = stages[:FIRST]
    counter.pretrain(torch.cat(list(map(look, first))), torch.cat([v.address_N for v in first]), 3)
    spent = time.perf_counter() - started
    aucs = [auc(v, counter.score(look(v))) for v in held.values()]
    started = time.perf_counter()
    for i, v in enumerate(stages[FIRST:]):
        counter.visit(look(v), v.address_N, 1024, i)
    spent += time.perf_counter() - started
    key_N, inverse_N, n_N = torch.cat([v.key_N for v in stages]).unique(
        return_inverse=True, return_counts=True
    )
    invn_N = torch.zeros(len(key_N))
    invn_N[inverse_N] = torch.cat([counter.score(look(v)).float() for v in stages])
    return *agreement(n_N, invn_N).values(), *aucs, spent


def auc(visits, invn_N, top=0.3, run=2):
    """Pairs of a rare and a common answer to one question: the share in which the rare one's bonus
    is larger (ties half).
    """
    invn_BT = torch.zeros_like(visits.roll.mask_BT)
    invn_BT[visits.roll.mask_BT > 0] = invn_N.float()
    kept_BT = merci.coherent(merci.percentile(invn_BT, visits.roll.mask_BT, top), run)
    bonus_PG = merci.trajectory_bonus(invn_BT, kept_BT, visits.roll.mask_BT).view_as(visits.rare_PG)
    wins, pairs = 0.0, 0
    for bonus_G, rare_G in zip(bonus_PG, visits.rare_PG):
        ahead = bonus_G[rare_G][:, None] - bonus_G[~rare_G]
        wins, pairs = (
            wins + float((ahead > 0).sum() + 0.5 * (ahead == 0).sum()),
            pairs + ahead.numel(),
        )
    return wins / pairs


class Prioritised(cfn.Counter):
    """Rehearses remembered visits in proportion to their estimated 1/n (one half of the priority of
    Lobel et al.).
    """

    def visit(self, hidden_ND, address_N, rehearse, stamp):
        whole = self.replay
        chance_N = self.score(whole.hidden_ND)
        pick_N = (
            uniform(address("replay", stamp, whole.address_N))
            < rehearse * chance_N / chance_N.sum()
        )
        both = (
            torch.cat([hidden_ND, whole.hidden_ND[pick_N].float()]),
            torch.cat([address_N, whole.address_N[pick_N]]),
        )
        cfn.learn(self.net, self.optimizer, *both, batch=self.batch)
        self.replay.add(hidden_ND, address_N, whole.total + len(address_N))


class Table:
    """Exact counting, with `coins` coins a visit averaged in a table, or (coins=0) of the visits
    themselves. Features are keys.
    """

    def __init__(self, coins):
        self.coins, self.key_N, self.address_N = (
            coins,
            torch.zeros(0, dtype=torch.int64),
            torch.zeros(0, dtype=torch.int64),
        )

    def pretrain(self, key_N, address_N, passes):
        self.visit(key_N, address_N, 0, 0)

    def visit(self, key_N, address_N, rehearse, stamp):
        self.key_N, self.address_N = (
            torch.cat([self.key_N, key_N]),
            torch.cat([self.address_N, address_N]),
        )
        self.known_S, inverse_N, self.n_S = self.key_N.unique(
            return_inverse=True, return_counts=True
        )
        if self.coins:
            sum_SC = torch.zeros(len(self.known_S), self.coins).index_add_(
                0, inverse_N, cfn.draw_coins(self.address_N, self.coins)
            )
            self.invn_S = cfn.inverse_count(sum_SC / self.n_S[:, None])
        else:
            self.invn_S = 1 / self.n_S

    def score(self, key_N):
        at_N = torch.searchsorted(self.known_S, key_N).clamp(max=len(self.known_S) - 1)
        return torch.where(self.known_S[at_N] == key_N, self.invn_S[at_N], 1.0)


def rungs(data):
    """-> [(name, seed -> (counter, Visits -> features))]."""
    last = lambda v: v.layer_LND[-1]
    layers = lambda v: v.layer_LND.transpose(0, 1).flatten(1)

    def whiten(features, floor=1e-3):
        """Decorrelated and scaled to variance 1: every direction of the states counts alike, not
        only the few that vary most.
        """
        x_ND = torch.cat([features(v) for v in data[0][:FIRST]])
        values_D, vectors_DD = torch.linalg.eigh(torch.cov(x_ND.T).double())
        map_DD = (vectors_DD * (values_D + floor * values_D.mean()).rsqrt()).float()
        return lambda v: (features(v) - x_ND.mean(0)) @ map_DD

    def random_relu(features, width, s):
        rng = torch.Generator().manual_seed(s)
        weight_DH = (
            torch.randn(features(data[0][0]).shape[1], width, generator=rng)
            / features(data[0][0]).shape[1] ** 0.5
        )
        bias_H = torch.randn(width, generator=rng)
        return lambda v: (features(v) @ weight_DH + bias_H).relu()

    def simhash(features, bits, s):
        """The signs of random projections as a key: states that look alike share it, the fewer the
        bits the more of them.
        """
        rng = torch.Generator().manual_seed(s)
        plane_DK = torch.randn(features(data[0][0]).shape[1], bits, generator=rng)
        return lambda v: ((features(v) @ plane_DK > 0).long() << torch.arange(bits)).sum(1)

    def net(features=last, kind=cfn.Counter, **options):
        width = features(data[0][0]).shape[1]
        return lambda s: (kind(width, **{"hidden": 128, "seed": s} | options), features)

    white, white_layers = whiten(last), whiten(layers)
    elliptical = lambda features: (
        lambda s: (rivals.Elliptical(features(data[0][0]).shape[1]), features)
    )
    relu = lambda s: (rivals.Elliptical(1024), random_relu(white, 1024, s))
    return [
        ("CFN as in toy_sql (width 128, 20 coins)", net()),
        ("without the random prior", net(prior=False)),
        ("100 coins", net(coins=100)),
        ("learning rate x 5", net(lr=5e-3)),
        ("width 1024", net(hidden=1024)),
        ("batches of 64 (8 x the updates)", net(batch=64)),
        ("prioritised replay", net(kind=Prioritised)),
        ("features: embeddings and all layers", net(layers)),
        ("features decorrelated (whitened)", net(white)),
        ("whitened, learning rate x 3", net(white, lr=3e-3)),
        ("whitened, learning rate x 3, width 1024", net(white, hidden=1024, lr=3e-3)),
        (
            "all layers, whitened, learning rate x 3, width 1024",
            net(white_layers, hidden=1024, lr=3e-3),
        ),
        ("RND", net(kind=rivals.RND)),
        ("elliptical, 96 features (linear head, coins integrated out)", elliptical(last)),
        ("elliptical, all layers", elliptical(layers)),
        ("elliptical, 1024 random features of the whitened state", relu),
        *(
            (
                f"exact counts of {bits} sign bits of the whitened state",
                lambda s, bits=bits: (Table(0), simhash(white, bits, s)),
            )
            for bits in (8, 16, 32)
        ),
        (
            "a table of prefixes, 20 coins each (the ideal CFN)",
            lambda s: (Table(20), lambda v: v.key_N),
        ),
        ("exact counts of prefixes", lambda s: (Table(0), lambda v: v.key_N)),
    ]


def picture(rows, out):
    """What a counter gains in exactness and what it loses: Spearman against the AUC on new
    questions.
    """
    from matplotlib import rc_context

    with rc_context(report.LOOK):
        title = "counters by two yardsticks, as numbered (orange: exact counts)"
        figure, axes = report.canvas(
            title, "Spearman of the estimate with the exact 1/n of the prefix"
        )
        for number, (name, rho, _, _, new, _) in enumerate(rows, 1):
            axes.plot(
                rho,
                new,
                "o",
                markersize=4,
                color=report.ORANGE if "exact counts" in name or "table" in name else report.BLUE,
            )
            side, place = (
                ("left", (4, 2)) if number % 2 else ("right", (-4, -8))
            )  # where points crowd, labels on both sides
            axes.annotate(
                str(number),
                (rho, new),
                xytext=place,
                textcoords="offset points",
                fontsize=6,
                ha=side,
            )
        axes.set_ylabel("AUC, other questions")
        report.save(figure, out)


if __name__ == "__main__":
    run_command(main)
