"""none: no bonus. The base class of all, and what those that use MERCI's advantage shaping share.

Axes: P prompts, G responses per prompt, B = P*G rows, T token positions, N visits, D hidden width.
"""

from dataclasses import dataclass

import torch

from nanomerci import merci
from nanomerci.counts import AnswerCounts, PrefixCounts

BONUSES = {}
FORMS = {
    "variance": merci.trajectory_bonus,
    "deviation": merci.bonus_of_deviations,
    "sum": merci.bonus_of_sum,
}


def register(name):
    """Decorates a Bonus: `--bonus name` picks it."""

    def add(cls):
        BONUSES[name] = cls
        return cls

    return add


@dataclass(frozen=True)
class Visits:
    """A round of responses, as a bonus sees it."""

    rollout: object
    """tokens_BT, mask_BT, logp_BT; see nanomerci/loop/rollout.py."""
    address_BT: torch.Tensor
    """int64: names the visit; its coins and noise are functions of it."""
    problem_B: list
    """Ids of the problems."""
    answer_B: list
    """The final answers, None where there is none (of a bonus with counts_answers)."""
    hidden_ND: torch.Tensor | None = None
    """States to count, a fair sample where there are many (of a bonus with counts_states)."""
    address_N: torch.Tensor | None = None
    """The visits they belong to."""
    novelty_BT: torch.Tensor | None = None
    """What `novelty` or `score` made of them."""


@register("none")
class Bonus:
    """No bonus. A bonus overrides what differs.

    Score first, count later: `score`, `novelty` and `value` are asked about a round before `update`
    learns it. options: anything with the options it reads as attributes, such as our Config.
    width: of a hidden state. ranks: nanomerci.runtime.ranks, or anything with its sum_, max_ and
    gather.
    """

    counts_states = False  # whether hidden states are scored and counted
    counts_answers = False  # whether final answers are counted, in self.answers
    counts_prefixes = False  # whether there is a table of exact prefix counts, self.prefixes
    pretrains = False  # whether it learns what the initial policy visits before the first step

    def __init__(self, options, width, device, ranks):
        self.options, self.ranks, self.tables = options, ranks, {}
        if self.counts_prefixes or options.oracle_counts:
            self.tables["prefixes"] = PrefixCounts(ranks.gather)
        if self.counts_answers:
            self.tables["answers"] = AnswerCounts(ranks.gather)
        self.prefixes, self.answers = self.tables.get("prefixes"), self.tables.get("answers")

    def score(self, hidden_ND):
        """Novelty of hidden states, for a bonus with counts_states. (N, D) -> (N,)."""
        raise NotImplementedError

    def novelty(self, visits):
        """Novelty of each token, for a bonus without. -> novelty_BT."""
        return visits.rollout.mask_BT * 0

    def value(self, visits, novelty_BT, kept_BT):
        """One number per response from its tokens' novelty. kept_BT: what the filters left. ->
        bonus_B.
        """
        return FORMS[self.options.bonus_form](novelty_BT, kept_BT, visits.rollout.mask_BT)

    def merge(self, batch, adv_PG, gamma, step):
        """The advantage with the bonus in it. -> (B,), or (B, T) where it differs between
        tokens.
        """
        return adv_PG.flatten()

    def at_tokens(self, adv_B, entropy_BT):
        """The same once more inside the update, where the policy's entropies are known."""
        return adv_B

    def pretrain(self, visits):
        """Learn what the initial policy visits. visits: a list of rounds. -> metrics."""
        return {}

    def update(self, visits, step):
        """Count what was visited in this step. visits: a list of rounds. -> metrics."""
        return {}

    def before_training(self, visits):
        """pretrain, and the exact counts where they are kept."""
        metrics = self.pretrain(visits)
        if self.prefixes:
            self.prefixes.add([v.rollout for v in visits])
        return metrics

    def after_step(self, visits, step):
        """update, and the exact counts. -> metrics; calibration record (None without exact
        counts).
        """
        metrics = {"cfn/loss": 0.0} | self.update(visits, step)
        if not self.prefixes:
            return metrics, None
        agreement, calibration = self.prefixes.compare(visits)
        self.prefixes.add([v.rollout for v in visits])
        return metrics | agreement, calibration

    def state_dict(self):
        """What is the same on every rank; under "own", what this rank has for itself."""
        return {name: table.state_dict() for name, table in self.tables.items()}

    def load_state_dict(self, state):
        for name, table in self.tables.items():
            table.load_state_dict(state[name])


class Shaped(Bonus):
    """A bonus that enters the advantage as MERCI's does: z-scores within the group, at most alpha
    |A|.
    """

    @property
    def rule(self):
        """MERCI's merge, or the one that also acts where the advantage is 0."""
        return merci.merge_dead if self.options.bonus_on_zero_variance else merci.merge

    def merge(self, batch, adv_PG, gamma, step):
        alpha, mask_BT = self.options.alpha, batch.rollout.mask_BT
        if self.options.credit == "response":
            extra_PG = merci.exploration_advantage(batch.bonus_PG)
            return self.rule(adv_PG, extra_PG, gamma, alpha).flatten()
        bonus_BT = merci.bonus_to_go(batch.novelty_BT, batch.kept_BT, mask_BT)
        extra_BT = merci.per_token_advantage(bonus_BT, mask_BT, batch.group)
        return self.rule(adv_PG.view(-1, 1), extra_BT, gamma, alpha) * mask_BT


class StateCounter(Shaped):
    """A bonus whose novelty is what a counter of hidden states reads. `make_counter` makes it: an
    object with score(hidden_ND), pretrain, update, state_dict, load_state_dict (see cfn.Counter).
    """

    counts_states = pretrains = True

    def __init__(self, options, width, device, ranks):
        super().__init__(options, width, device, ranks)
        self.counter = self.make_counter(width, device)

    def score(self, hidden_ND):
        return self.counter.score(hidden_ND)

    def pretrain(self, visits):
        epochs = self.options.cfn_pretrain_epochs
        return {"cfn/loss": self.counter.pretrain(*states(visits), epochs)}

    def update(self, visits, step):
        replayed = self.options.cfn_rehearse
        return {"cfn/loss": self.counter.update(*states(visits), replayed, step)}

    def state_dict(self):
        return super().state_dict() | self.counter.state_dict()

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.counter.load_state_dict(state)


def states(visits):
    """-> hidden_ND, address_N of all rounds."""
    return torch.cat([v.hidden_ND for v in visits]), torch.cat([v.address_N for v in visits])
