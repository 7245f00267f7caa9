"""The groups a step learns from: roll out, grade, score the novelty of what was visited.

Axes: P prompts, G responses per prompt, B = P*G rows, T token positions.
"""

from dataclasses import replace
from functools import partial

import torch

from nanomerci import bonuses, dapo, merci, objectives
from nanomerci.address import address, seed
from nanomerci.bonuses import Visits
from nanomerci.loop.model import autocast, encode
from nanomerci.loop.rollout import Group, SampleOptions
from nanomerci.loop.text import noise_mask
from nanomerci.runtime import ranks
from nanomerci.tasks import pick
from nanomerci.tasks.graders.pool import Grade


def needs_reference(c):
    """Whether a frozen copy of the initial policy is needed: for its features, or the KL term."""
    return bonuses.find(c.bonus).counts_states and c.cfn_features == "frozen" or c.kl_coef > 0


def reads_sampler_states(c):
    """Whether the policy's own states are counted, which the sampler hands over."""
    return bonuses.find(c.bonus).counts_states and c.cfn_features == "policy"


def filter_tokens(c, tokenizer, visits, spans_B):
    """MERCI's three filters, one after the other. spans_B: the characters of each response that are
    noise. -> passed_BT int64, how many filters each token passed; what passed all 3 is kept.
    """
    top_BT = merci.percentile(visits.novelty_BT, visits.rollout.mask_BT, c.top)
    run_BT = kept_BT = merci.coherent(top_BT, c.run)
    if c.noise_filter:
        kept_BT = merci.suppress(run_BT, noise_mask(tokenizer, visits.rollout, spans_B))
    return torch.stack([top_BT, run_BT, kept_BT]).sum(0)


class Collector:
    """Collects groups, and holds what waits between steps: how far the stream of prompts was read,
    groups that an earlier step had too many of, visits that the bonus has yet to count.
    """

    def __init__(self, c, task, sampler, reader, bonus, pool):
        """sampler: sample.generate with model, temperature and length fixed. reader: a
        loop.model.StateReader, or None where nothing is read off hidden states. pool: of graders.
        """
        self.c, self.task, self.sampler, self.reader = c, task, sampler, reader
        self.bonus, self.pool = bonus, pool
        self.prompts_sampled, self.leftover, self.visits = 0, [], []

    @property
    def device(self):
        return self.sampler.model.device

    def collect(self, clock):
        """One step's groups: P of them, from one round of sampling or, with dynamic sampling, from
        as many as it takes until P groups carry signal. -> groups, rounds of groups.
        """
        c, one_round = self.c, partial(self.round, clock)
        if c.max_gen_rounds == 1:
            groups = one_round()
            return groups, [groups]
        groups, rounds = dapo.fill(
            self.leftover, one_round, c.prompts, c.max_gen_rounds, ranks.count
        )
        number_P = torch.tensor([group.number for group in groups], dtype=torch.int64)
        place_P = ranks.global_order(number_P).tolist()
        first = [g for g, place in zip(groups, place_P, strict=True) if place < c.prompts]
        self.leftover = [g for g, place in zip(groups, place_P, strict=True) if place >= c.prompts]
        return first, rounds

    def round(self, clock):
        """Roll out the next P prompts, grade, score. -> this rank's groups."""
        c, task = self.c, self.task
        number_P, problem_P, rollout, visit_BT = self.roll_out(self.prompts_sampled, "train")
        self.prompts_sampled += c.prompts
        tokenizer = self.sampler.tokenizer
        text_B = tokenizer.batch_decode(rollout.responses(), skip_special_tokens=True)
        problem_B = [problem for problem in problem_P for _ in range(c.group)]
        clock("sample")
        jobs = [task.job(p, text) for p, text in zip(problem_B, text_B, strict=True)]
        grades = self.pool.start(jobs)  # other processes grade, meanwhile
        needed = self.bonus.counts_answers or objectives.find(c.algo).reads_outcomes
        answer_B = [task.answer(text) if needed else None for text in text_B]
        visits, logp_ref_BT = self.score(rollout, visit_BT, problem_B, answer_B)
        passed_BT = filter_tokens(c, tokenizer, visits, map(task.noise, problem_B, text_B))
        bonus_B = self.bonus.value(visits, visits.novelty_BT, passed_BT == 3)
        clock("score")
        grade_B = grades.result()
        reward_B = torch.tensor([grade.reward for grade in grade_B], device=self.device)
        if c.overlong_buffer:
            penalty_B = dapo.overlong_penalty(rollout.length_B, c.max_new_tokens, c.overlong_buffer)
            reward_B = reward_B + penalty_B
        clock("grade")
        tensors = rollout.tokens_BT, rollout.mask_BT, rollout.logp_BT, visits.novelty_BT
        columns = *tensors, passed_BT, logp_ref_BT, reward_B, bonus_B, grade_B, text_B, answer_B
        groups = []
        for p, (number, problem) in enumerate(zip(number_P.tolist(), problem_P, strict=True)):
            rows = slice(p * c.group, (p + 1) * c.group)
            groups.append(Group(number, problem, *(column[rows] for column in columns)))
        return groups

    def roll_out(self, first, purpose):
        """G responses to this rank's share of the P prompts from position `first` of the stream of
        prompts on. Row r of the whole run uses the random stream keyed by r, for sampling and for
        its coins. -> number_P, problem_P, rollout, visit_BT.
        """
        c = self.c
        number_P = first + torch.arange(c.prompts, device=self.device)[ranks.local_slice(c.prompts)]
        member_G = torch.arange(c.group, device=self.device)
        row_B = (number_P[:, None] * c.group + member_G).flatten()
        problem_P = pick(self.task.train, number_P.tolist(), c.seed)
        prompts = [encode(self.sampler.tokenizer, problem.prompt) for problem in problem_P]
        options = SampleOptions(row_B, c.max_num_seqs, reads_sampler_states(c))
        with autocast(c, self.device):
            rollout = self.sampler(prompts, c.group, seed=seed(purpose, c.seed), options=options)
        column_T = torch.arange(rollout.tokens_BT.shape[1], device=self.device)
        return number_P, problem_P, rollout, address(purpose, c.seed, row_B[:, None], column_T)

    def score(self, rollout, visit_BT, problem_B, answer_B):
        """How novel is every token? -> Visits, kept until the bonus counts them; logp_ref_BT."""
        ids = [problem.id for problem in problem_B]
        logp_ref_BT = novelty_BT = rollout.mask_BT * 0
        hidden_ND = address_N = None
        if self.reader:
            with autocast(self.c, self.device):
                novelty_BT, logp_ref_BT, hidden_ND, address_N = self.reader(rollout, visit_BT)
        rollout = replace(rollout, states_BRD=None)
        visits = Visits(rollout, visit_BT, ids, answer_B, hidden_ND, address_N, novelty_BT)
        if not self.bonus.counts_states:
            visits = replace(visits, novelty_BT=self.bonus.novelty(visits))
        self.visits.append(visits)
        return visits, logp_ref_BT

    def visit_before_training(self):
        """Sample what the initial policy visits, for the bonus to learn."""
        for i in range(self.c.cfn_pretrain):
            _, _, rollout, visit_BT = self.roll_out(i * self.c.prompts, "pretrain")
            self.score(rollout, visit_BT, [], [])

    def take_visits(self):
        """The rounds since the last call."""
        visits, self.visits = self.visits, []
        return visits

    def state_dict(self):
        leftover = [group.state() for group in self.leftover]
        return {"prompts_sampled": self.prompts_sampled, "own": leftover}

    def load_state_dict(self, state):
        self.prompts_sampled = state["prompts_sampled"]
        self.leftover = []
        for plain in state["own"]:
            (problem,) = pick(self.task.train, [plain["number"]], self.c.seed)
            grades = [Grade(*grade) for grade in plain["grade_G"]]
            self.leftover.append(Group(**plain | {"problem": problem, "grade_G": grades}))
