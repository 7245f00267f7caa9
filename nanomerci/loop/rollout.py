"""What sampling produced, and how to walk through it: padding, masks, micro-batches.

One alignment, here and everywhere: column t of every _BT tensor belongs to token t, given the
tokens before it. Rows are prompt, response, padding (right-padded, so causal attention needs no
mask: nothing real ever looks at a pad).

Axes: P prompts, G samples a prompt, B = P*G rows, T token positions.
"""

from dataclasses import dataclass, fields
from functools import partial

import torch

# fastest of 512 to 16384 for the tiny model: 1.6 x as fast as 16384 in training, 1.9 x in scoring
# (AMD EPYC, 2026-11-24)
CACHED = 4096


@dataclass(frozen=True)
class Rollout:
    """Row p*G + g is sample g of prompt p. Later stages make new tensors, they never edit these."""

    tokens_BT: torch.Tensor  # int64
    mask_BT: (
        torch.Tensor
    )  # float 1 on response tokens (the end-of-sequence token included), 0 on prompt and padding
    logp_BT: (
        torch.Tensor
    )  # float32 log p(token t | before) under the sampling distribution, 0 where mask is 0

    @property
    def length_B(self):
        return self.mask_BT.sum(1)

    @property
    def end_B(self):
        """One past the last response token: the width a row needs, prompt included."""
        column_T = torch.arange(1, self.mask_BT.shape[1] + 1, device=self.mask_BT.device)
        return (self.mask_BT * column_T).amax(1).long()

    def responses(self):
        """Token ids of each response as lists, pads and prompt left out."""
        return [tokens[mask > 0].tolist() for tokens, mask in zip(self.tokens_BT, self.mask_BT)]

    @staticmethod
    def blank(device):
        """One row of two tokens that means nothing."""
        return Rollout(
            torch.zeros(1, 2, dtype=torch.int64, device=device),
            torch.tensor([[0.0, 1.0]], device=device),
            torch.zeros(1, 2, device=device),
        )

    def rows(self, rows):
        """A smaller rollout: these rows, and only as many columns as they need."""
        used = self.mask_BT[rows].any(0).nonzero()
        width = int(used[-1]) + 1 if len(used) else 1
        return Rollout(
            self.tokens_BT[rows, :width], self.mask_BT[rows, :width], self.logp_BT[rows, :width]
        )


@dataclass(frozen=True)
class Experience:
    """A round of sampling in whole groups, with all that can be said of an answer on its own: row
    p*G + g is answer g to prompt p.

    It can be cut and joined by groups, so dynamic sampling may keep some for later.
    """

    # int64: the prompt's position in the run's stream of problems, by which all that is random is
    # addressed
    number_P: torch.Tensor
    problem_P: list
    roll: Rollout
    text_B: list  # the answers, decoded
    grade_B: list
    reward_B: torch.Tensor  # the grade's, with any overlong penalty
    # 1/n of the prefix that ends in token t when it was visited (or what a rival bonus puts there)
    novelty_BT: torch.Tensor
    passed_BT: (
        torch.Tensor
    )  # int64: how many of the three filters, one after the other, the token passed
    bonus_B: torch.Tensor  # of the whole response
    logp_ref_BT: torch.Tensor  # of the initial policy, where the KL term wants it, else 0

    @property
    def group(self):
        return len(self.text_B) // max(len(self.number_P), 1)

    @property
    def grade_PG(self):
        """What the grader gave, without any penalty."""
        rewards = [g.reward for g in self.grade_B]
        return torch.tensor(rewards, dtype=self.reward_B.dtype, device=self.reward_B.device).view(
            self.reward_PG.shape
        )

    @property
    def right_B(self):
        return torch.tensor(
            [g.outcome == "right" for g in self.grade_B],
            dtype=torch.bool,
            device=self.reward_B.device,
        )

    @property
    def kept_BT(self):
        """bool: the tokens that all three filters left."""
        return self.passed_BT == 3

    @property
    def reward_PG(self):
        return self.reward_B.view(len(self.number_P), self.group or 1)

    def groups(self, chosen_P):
        """Only these groups: indices, or a bool for each."""
        G, device = self.group, self.number_P.device
        chosen_P = chosen_P.nonzero()[:, 0] if chosen_P.dtype == torch.bool else chosen_P
        row_B = (chosen_P[:, None] * G + torch.arange(G, device=device)).flatten()

        def cut(name, value):
            index = chosen_P if name.endswith("_P") else row_B
            if isinstance(value, Rollout):
                return Rollout(
                    **{f.name: cut(f.name, getattr(value, f.name)) for f in fields(value)}
                )
            return (
                value[index]
                if isinstance(value, torch.Tensor)
                else [value[i] for i in index.tolist()]
            )

        return Experience(**{f.name: cut(f.name, getattr(self, f.name)) for f in fields(self)})

    def state(self):
        """As plain data for a checkpoint; the problems are found again by their numbers."""
        parts = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("problem_P", "roll", "grade_B")
        }
        return parts | {
            "grade_B": [tuple(g) for g in self.grade_B],
            "roll": {f.name: getattr(self.roll, f.name) for f in fields(Rollout)},
        }

    @staticmethod
    def of_state(state, pick):
        """pick: list of numbers -> list of problems."""
        from nanomerci.tasks.graders.pool import Grade

        return Experience(
            **state
            | {
                "problem_P": pick(state["number_P"].tolist()),
                "roll": Rollout(**state["roll"]),
                "grade_B": [Grade(*g) for g in state["grade_B"]],
            }
        )

    @staticmethod
    def join(parts):
        """One after the other; columns are padded to the widest."""
        width = max(part.passed_BT.shape[1] for part in parts)

        def link(values):
            if isinstance(values[0], Rollout):
                return Rollout(
                    **{
                        f.name: link([getattr(v, f.name) for v in values])
                        for f in fields(values[0])
                    }
                )
            if isinstance(values[0], list):
                return [item for value in values for item in value]
            widen = lambda v: (
                torch.nn.functional.pad(v, (0, width - v.shape[1])) if v.dim() == 2 else v
            )
            return torch.cat([widen(v) for v in values])

        return Experience(
            **{f.name: link([getattr(part, f.name) for part in parts]) for f in fields(Experience)}
        )


def pad(rows, value=0, device=None):
    """List of id lists -> int64 (rows, longest), padded on the right."""
    width = max(map(len, rows), default=0)
    return torch.tensor(
        [list(r) + [value] * (width - len(r)) for r in rows], dtype=torch.int64, device=device
    )


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


def noise_mask(tokenizer, roll, spans_B):
    """Character spans of every response -> noise_BT, true on the tokens that hold any character of
    a span.
    """
    noise_BT = torch.zeros_like(roll.mask_BT, dtype=torch.bool)
    for row, spans in enumerate(spans_B):
        if spans:
            columns = roll.mask_BT[row].nonzero()[:, 0]
            noise_BT[row, columns] = token_spans(
                tokenizer, roll.tokens_BT[row, columns].tolist(), spans
            ).to(noise_BT.device)
    return noise_BT


def token_spans(tokenizer, ids, spans):
    """Character spans of a decoded response -> bool per token, true where a token holds any
    character of a span.

    The text that ids[:k] decodes to only grows with k, so each border is found by bisection.
    """
    marked = torch.zeros(len(ids), dtype=torch.bool)

    def first_token_past(
        char,
    ):  # smallest k such that the first k tokens reach beyond this character
        low, high = 1, len(ids)
        while low < high:
            middle = (low + high) // 2
            low, high = (
                (low, middle)
                if len(tokenizer.decode(ids[:middle], skip_special_tokens=True)) > char
                else (middle + 1, high)
            )
        return low

    for start, end in spans:
        if end > start and ids:
            marked[first_token_past(start) - 1 : first_token_past(end - 1)] = True
    return marked


class Pieces:
    """Token ids one after another -> the text each adds. A character that several tokens share
    comes with the last of them.
    """

    def __init__(self, tokenizer, **how):
        self.decode, self.shown, self.waiting = partial(tokenizer.decode, **how), [], []

    def __call__(self, token, last=False):
        self.waiting.append(token)
        before, now = self.decode(self.shown), self.decode(self.shown + self.waiting)
        if now.endswith("\ufffd") and not last and len(self.waiting) < 8:
            return ""
        self.shown, self.waiting = self.waiting, []
        return now[len(before) :]


def pieces(tokenizer, ids):
    """Token ids -> the text each adds; joined they are the text."""
    add = Pieces(tokenizer)
    return [add(token, last=place == len(ids)) for place, token in enumerate(ids, 1)]
