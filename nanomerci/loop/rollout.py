"""What sampling produced, and how to walk through it: padding, masks, micro-batches.

One alignment, here and everywhere: column t of every _BT tensor belongs to token t, given the
tokens before it. Rows are prompt, response, padding (right-padded, so causal attention needs no
mask: no real token attends to padding).

Axes: P prompts, G responses per prompt, B = P*G rows, T token positions.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import chain

import torch
from torch.nn import functional as F

# fastest of 512 to 16384 for the tiny model: 1.6 x as fast as 16384 in training, 1.9 x in scoring
# (AMD EPYC, 2026-11-24)
CACHED = 4096


@dataclass(frozen=True)
class SampleOptions:
    """What a caller of the sampler may want beyond the distribution to sample from."""

    rows: torch.Tensor | None = None
    """(B,) int64: the number by which each row's random numbers are addressed; None: 0..B-1."""
    slots: int = 0
    """Rows in flight at once, at most as many as there is room for (0: as many)."""
    states: bool = False
    """Whether the rollout also holds the hidden states the model went through."""
    progress: Callable | None = None
    """Called with the number of rows that have ended since its last call."""
    stream: Callable | None = None
    """Called with (row, token id) as each token is drawn."""
    backend: str | None = None
    """Of the kernel that draws: see nanomerci.kernels.choose."""
    decoder: object = None
    """loop.decode.Decoder: what earlier calls with this model left for later ones."""


@dataclass(frozen=True)
class Rollout:
    """Row p*G + g is response g to prompt p. Later stages make new tensors and edit none."""

    tokens_BT: torch.Tensor
    """int64"""
    mask_BT: torch.Tensor
    """float: 1 on response tokens (end-of-sequence token included), 0 on prompt and padding."""
    logp_BT: torch.Tensor
    """float32: log p(token t | before) under the sampling distribution, 0 where mask is 0."""
    states_BRD: torch.Tensor | None = None
    """If asked for, the hidden state after token r of each response, 0 from its last token on."""

    @property
    def length_B(self):
        return self.mask_BT.sum(1)

    @property
    def end_B(self):
        """One past the last response token: the width a row needs, prompt included."""
        column_T = torch.arange(1, self.mask_BT.shape[1] + 1, device=self.mask_BT.device)
        return (self.mask_BT * column_T).amax(1).long()

    @property
    def visited_BT(self):
        """bool: tokens whose state is counted; that after a response's last token is terminal."""
        column_T = torch.arange(1, self.mask_BT.shape[1] + 1, device=self.mask_BT.device)
        return (self.mask_BT > 0) & (column_T < self.end_B[:, None])

    def responses(self):
        """Token ids of each response as lists, pads and prompt left out."""
        marked_BT = self.tokens_BT.where(self.mask_BT > 0, -1).cpu()  # the GPU is waited for once
        return [marked_T[marked_T >= 0].tolist() for marked_T in marked_BT]

    @staticmethod
    def blank(device):
        """One row of two tokens that means nothing."""
        tokens_BT = torch.zeros(1, 2, dtype=torch.int64, device=device)
        mask_BT = torch.tensor([[0.0, 1.0]], device=device)
        return Rollout(tokens_BT, mask_BT, torch.zeros(1, 2, device=device))

    def rows(self, rows):
        """A smaller rollout: these rows, and only as many columns as they need."""
        used = self.mask_BT[rows].any(0).nonzero()
        width = int(used[-1]) + 1 if len(used) else 1
        tensors = self.tokens_BT, self.mask_BT, self.logp_BT
        return Rollout(*(x_BT[rows, :width] for x_BT in tensors))

    def clone(self):
        """The same in memory that autograd may save, which what inference mode made may not be."""
        tensors = self.tokens_BT, self.mask_BT, self.logp_BT
        return Rollout(*(x_BT.clone() for x_BT in tensors), self.states_BRD)


@dataclass(frozen=True)
class Group:
    """The G responses to one prompt, with all that is known of each by itself. Dynamic sampling
    moves groups between steps, ranks deal them out anew on resume.
    """

    number: int
    """The prompt's position in the run's stream of prompts: the address of all that is random."""
    problem: object
    tokens_GT: torch.Tensor
    mask_GT: torch.Tensor
    logp_GT: torch.Tensor
    novelty_GT: torch.Tensor
    """1/n of the prefix that ends in token t when it was visited, or what another bonus puts there.
    """
    passed_GT: torch.Tensor
    """int64: how many of the three filters, one after the other, the token passed."""
    logp_ref_GT: torch.Tensor
    """Log-probs of the reference model, where the KL term needs them, else 0."""
    reward_G: torch.Tensor
    """The grade's, with any overlong penalty."""
    bonus_G: torch.Tensor
    """Of the whole response."""
    grade_G: list
    text_G: list
    answer_G: list
    """The final answers, where something counts them, else None."""

    def state(self):
        """As plain data for a checkpoint; the problem is found again by its number."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "problem"}
        return plain | {"grade_G": [tuple(grade) for grade in self.grade_G]}

    @property
    def graded_G(self):
        """float64, on the CPU: what the grader gave, without any penalty."""
        return torch.tensor([grade.reward for grade in self.grade_G], dtype=torch.float64)


@dataclass(frozen=True)
class Batch:
    """Groups side by side, padded to the widest: row p*G + g is response g to prompt p."""

    number_P: torch.Tensor
    problem_P: list
    rollout: Rollout
    novelty_BT: torch.Tensor
    passed_BT: torch.Tensor
    logp_ref_BT: torch.Tensor
    reward_PG: torch.Tensor
    bonus_PG: torch.Tensor
    grade_B: list
    text_B: list
    answer_B: list

    @staticmethod
    def of(groups, G, device):
        """groups: a list of Group, which may be empty where other ranks have some."""
        width = max((group.tokens_GT.shape[1] for group in groups), default=1)

        def rows(name, dtype=torch.float32):
            own = [getattr(group, f"{name}_GT") for group in groups]
            wide = [F.pad(x_GT, (0, width - x_GT.shape[1])) for x_GT in own]
            return torch.cat(wide or [torch.zeros(0, width, dtype=dtype, device=device)])

        def values(name):
            each = [getattr(group, f"{name}_G") for group in groups]
            return torch.stack(each) if each else torch.zeros(0, G, device=device)

        def listed(name):
            return list(chain.from_iterable(getattr(group, f"{name}_G") for group in groups))

        number_P = torch.tensor([group.number for group in groups], dtype=torch.int64)
        return Batch(
            number_P.to(device),
            [group.problem for group in groups],
            Rollout(rows("tokens", torch.int64), rows("mask"), rows("logp")),
            rows("novelty"),
            rows("passed", torch.int64),
            rows("logp_ref"),
            values("reward"),
            values("bonus"),
            listed("grade"),
            listed("text"),
            listed("answer"),
        )

    @property
    def group(self):
        return self.reward_PG.shape[1]

    @property
    def graded_PG(self):
        """What the grader gave, without any penalty."""
        rewards = [grade.reward for grade in self.grade_B]
        graded_B = torch.tensor(rewards, dtype=self.reward_PG.dtype, device=self.reward_PG.device)
        return graded_B.view_as(self.reward_PG)

    @property
    def correct_PG(self):
        correct = [grade.outcome == "right" for grade in self.grade_B]
        correct_B = torch.tensor(correct, dtype=torch.bool, device=self.reward_PG.device)
        return correct_B.view_as(self.reward_PG)

    @property
    def kept_BT(self):
        """bool: the tokens that all three filters left."""
        return self.passed_BT == 3


def pad(rows, device=None):
    """List of id lists -> int64 (rows, longest), padded with 0 on the right."""
    width = max(map(len, rows))
    full = [[*row, *[0] * (width - len(row))] for row in rows]
    return torch.tensor(full, dtype=torch.int64, device=device)


def micro_batches(length_B, budget):
    """Row indices cut into micro-batches of rows of like length, each at most `budget` tokens with
    padding (or one row).

    Longest first: if memory does not suffice, the first micro-batch says so, not one in the middle
    of the night. Which rows go together has no influence on the loss (its weights sum to 1 over the
    whole batch), only on how much padding is computed. On a CPU they have at most CACHED tokens:
    what a layer makes of so many stays in its caches, and rows are more alike in length.
    """
    budget = min(budget, CACHED) if length_B.device.type == "cpu" else budget
    order = torch.argsort(length_B, descending=True, stable=True).tolist()
    batches = []
    while order:
        rows = max(1, int(budget // int(length_B[order[0]])))
        batches.append(torch.tensor(order[:rows], device=length_B.device))
        order = order[rows:]
    return batches
