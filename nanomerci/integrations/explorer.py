"""A bonus beside somebody else's trainer: from its completions and normalised advantages to
advantages with the bonus in them. nanomerci/integrations/trl.py is one use of it.

Axes: B rows of this rank, T token positions (prompt, response, padding), C those of completions, N
visits, D hidden width.
"""

import zlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Literal, get_args, get_origin

import torch

from nanomerci import bonuses, merci
from nanomerci.address import address
from nanomerci.bonuses import BONUSES, Bonus, Shaped, Visits
from nanomerci.loop.collect import filter_tokens
from nanomerci.loop.metrics import length_correlation, per_response
from nanomerci.loop.model import StateReader
from nanomerci.loop.rollout import Rollout
from nanomerci.runtime.config import Count, Counter, Exploration, Seed, UserError


@dataclass(frozen=True, kw_only=True)
class MerciConfig(Counter, Exploration):
    """MERCI's options, as `train.py --help` explains them, and:"""

    seed: Seed = 0
    """Seed of the counter's network and coins."""
    cfn_pretrain: Count = 4
    """The first so many generation batches teach the counter, and the policy gets no bonus yet."""
    micro_batch_tokens: Count = 16384
    """Tokens per forward pass of the feature model, padding included."""
    backend: str | None = None
    """Kernel that scores: torch or triton; None = by device."""
    noise: Callable | None = None
    """noise(row of the data set, response) -> [(start, end), ...]: characters of the response that
    have nothing to do with the task, for the noise filter.
    """
    answer: Callable = str
    """answer(response) -> its final answer, or None; for bonus="outcome"."""

    def __post_init__(self):
        for f in fields(self):
            value, ranges = getattr(self, f.name), getattr(f.type, "__metadata__", ())
            words = [allowed.words for allowed in ranges if not allowed.test(value)]
            if get_origin(f.type) is Literal and value not in get_args(f.type):
                words = [" or ".join(get_args(f.type))]
            if words:
                raise UserError(f"MerciConfig({f.name}={value!r}): expected {words[0]}")
        if not merges_as_merci(bonuses.find(self.bonus)):
            names = ", ".join(name for name, cls in BONUSES.items() if merges_as_merci(cls))
            raise UserError(
                f"MerciConfig(bonus={self.bonus!r}): does not enter advantages by MERCI's rule, "
                f"the only one here; expected {names} (gamma=0 turns the bonus off)"
            )


def merges_as_merci(cls):
    shaped = issubclass(cls, Shaped) and cls.merge is Shaped.merge
    return shaped and cls.at_tokens is Bonus.at_tokens


class Alone:
    """One process. Of several, what differs: `rows` joins tensors (B, K), padded to the widest."""

    rank = 0

    @staticmethod
    def rows(x):
        return x

    gather = sum_ = max_ = rows


class Explorer:
    """The bonus, the model whose hidden states it counts, and how many batches it has seen.

    features: a transformer without its head. reading: the context in which to run it.
    """

    def __init__(self, options, features, tokenizer, ranks=Alone, reading=nullcontext):
        self.options, self.features, self.tokenizer = options, features, tokenizer
        self.ranks, self.reading, self.rounds = ranks, reading, 0
        self.width = features.config.get_text_config().hidden_size
        self.bonus = bonuses.find(options.bonus)(options, self.width, features.device, ranks)
        model = SimpleNamespace(base_model=features)
        how = {"budget": options.micro_batch_tokens, "backend": options.backend, "whole": True}
        self.reader = StateReader(model, self.bonus.score, **how)

    @torch.enable_grad()
    def shape(self, batch, rows, group, step):
        """batch: prompt_ids, prompt_mask (left-padded), completion_ids, completion_mask
        (right-padded), advantages, (B,) or (B, C); maybe tool_mask, 0 on what tools wrote. rows: of
        the data set. The responses to a prompt follow one another, over all ranks. -> advantages
        with the bonus in them; metrics. Then the visits are counted.
        """
        o, adv, (rollout, at_BC) = self.options, batch["advantages"], right_padded(batch)
        texts = self.tokenizer.batch_decode(rollout.responses(), skip_special_tokens=True)
        if len(rows) != len(texts):
            raise UserError(f"rows: got {len(rows)}, expected one per response, {len(texts)}")
        visits = self.visit(rollout, rows, texts)
        spans_B = ()
        if o.noise:
            spans_B = map(o.noise, rows, texts)
        passed_BT = filter_tokens(o, self.tokenizer, visits, spans_B)
        bonus_B = self.value(visits, passed_BT == 3)
        extra = self.exploration(visits, passed_BT == 3, bonus_B, group)
        teaching = self.bonus.pretrains and self.rounds < o.cfn_pretrain
        gamma = 0.0 if teaching else merci.gamma_at(step, o.gamma, o.gamma_decay)
        if o.credit == "token":
            extra = extra.gather(1, at_BC)
        elif adv.dim() == 1:
            extra = extra[:, 0]
        adv = adv[:, None] if adv.dim() < extra.dim() else adv
        shaped = self.bonus.rule(adv, extra, gamma, o.alpha)
        mask_BC = rollout.mask_BT.gather(1, at_BC)
        paid_B, shaped_B = (per_response(x, mask_BC).abs() for x in (shaped - adv, shaped))
        metrics = self.metrics(visits, passed_BT, (bonus_B, paid_B, shaped_B), group)
        metrics |= {"merci/gamma": gamma} | self.count(visits)
        self.rounds += 1
        return shaped, metrics

    def here(self, rows):
        """This rank's among the rows of all, as a slice."""
        return slice(self.ranks.rank * rows, (self.ranks.rank + 1) * rows)

    def visit(self, rollout, rows, texts):
        """How novel is every token? A visit's address is the number of its batch, its row among
        those of all ranks, and its position. -> Visits
        """
        o, mask_BT = self.options, rollout.mask_BT
        row_B = torch.arange(len(mask_BT), device=mask_BT.device) + self.here(len(mask_BT)).start
        column_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
        address_BT = address("trainer", o.seed, self.rounds, row_B[:, None], column_T)
        problem_B = [str(row.get("prompt")) for row in rows]
        visits = Visits(rollout, address_BT, problem_B, [o.answer(text) for text in texts])
        if self.bonus.counts_states:
            return replace(visits, **self.read(rollout, address_BT))
        novelty_BT = self.bonus.novelty(visits)
        if not novelty_BT.isfinite().all():
            raise UserError(
                f"MerciConfig(bonus={o.bonus!r}): reads log-probs of the sampled tokens, which TRL "
                "only has with vLLM or when it uses a batch for several updates; expected another"
            )
        return replace(visits, novelty_BT=novelty_BT)

    def read(self, rollout, address_BT):
        """Hidden states and their novelty, without dropout, which would draw from the global random
        state. -> fields of Visits
        """
        novelty_BT = torch.zeros_like(rollout.mask_BT)
        hidden_ND, address_N = novelty_BT.new_zeros(0, self.width), address_BT[:0, 0]
        rows = rollout.mask_BT.any(1).nonzero()[:, 0]
        if len(rows):
            part, training = rollout.rows(rows), self.features.training
            at = rows, slice(part.mask_BT.shape[1])
            self.features.eval()
            with self.reading():
                novelty_BT[at], _, hidden_ND, address_N = self.reader(part, address_BT[at])
            self.features.train(training)
        return {"hidden_ND": hidden_ND, "address_N": address_N, "novelty_BT": novelty_BT}

    def value(self, visits, kept_BT):
        """-> bonus_B. An answer is counted among those of its group, which may straddle ranks."""
        if self.bonus.counts_answers:
            asked_B, answer_B = map(self.ranks.gather, (visits.problem_B, visits.answer_B))
            visits = replace(visits, problem_B=asked_B, answer_B=answer_B)
            return self.bonus.value(visits, visits.novelty_BT, kept_BT)[self.here(len(kept_BT))]
        return self.bonus.value(visits, visits.novelty_BT, kept_BT)

    def exploration(self, visits, kept_BT, bonus_B, group):
        """The exploration advantage within groups, over all ranks: (B, 1), with per-token credit
        (B, T). Responses without a token to learn from are not in the group's mean and std.
        """
        mask_BT = visits.rollout.mask_BT
        if self.options.credit == "token":
            own = merci.bonus_to_go(visits.novelty_BT, kept_BT, mask_BT), mask_BT
        else:
            own = bonus_B[:, None], mask_BT.amax(1, keepdim=True)
        extra = merci.per_token_advantage(*map(self.ranks.rows, own), group)
        return extra[self.here(len(mask_BT)), : own[0].shape[1]]

    def count(self, visits):
        """The visits of this batch, after they were scored. -> metrics"""
        if self.bonus.pretrains and self.rounds == 0:
            return self.bonus.before_training([visits])
        return self.bonus.after_step([visits], self.rounds)[0]

    def metrics(self, visits, passed_BT, sums_B, group):
        """Means over all ranks, named as our own loop's."""
        mask_BT, novelty_BT = visits.rollout.mask_BT, visits.novelty_BT
        kept_B = (((passed_BT > n) & (novelty_BT > 0)).sum(1) for n in range(3))
        columns = (mask_BT.sum(1), mask_BT.amax(1), (novelty_BT * mask_BT).sum(1), *kept_B, *sums_B)
        table_BK = self.ranks.rows(torch.stack([x.float() for x in columns], 1))
        tokens, seen, novelty, top, run, kept, bonus, paid, shaped = table_BK.sum(0).tolist()
        pairs = {
            "cfn/invn": (novelty, tokens),
            "merci/bonus": (bonus, seen),
            "merci/kept_top": (top, tokens),
            "merci/kept_run": (run, tokens),
            "merci/kept": (kept, tokens),
            "merci/share": (paid, shaped),
            "merci/length_corr": length_correlation(*table_BK[:, [0, 6]].T.reshape(2, -1, group)),
        }
        return {name: float(total / n) if n else 0.0 for name, (total, n) in pairs.items()}

    def state_dict(self):
        state = {"rounds": self.rounds, "features": fingerprint(self.features)}
        return state | {"bonus": self.bonus.state_dict()}

    def load_state_dict(self, state):
        if state["features"] != fingerprint(self.features):
            raise UserError(
                "the checkpoint's bonus counted states of another feature model; expected the same "
                "initial model as then: the policy's own weights come from the checkpoint"
            )
        self.bonus.load_state_dict(state["bonus"])
        self.rounds = state["rounds"]


def fingerprint(model):
    """A checksum of some numbers of each frozen weight."""
    crc = 0
    for p in model.parameters():
        if not p.requires_grad:
            some = p.detach().flatten()[:: max(1, p.numel() // 1024)].contiguous()
            crc = zlib.crc32(some.view(torch.uint8).cpu().numpy(), crc)
    return crc


def right_padded(batch):
    """-> Rollout, its mask on what the policy wrote and learns from; at_BC, the column of each
    completion token in it. Log-probs that the trainer does not have are NaN.
    """
    prompt_ids, completion_ids = batch["prompt_ids"], batch["completion_ids"]
    P, C = prompt_ids.shape[1], completion_ids.shape[1]
    length_B1 = batch["prompt_mask"].sum(1, keepdim=True)
    column_T = torch.arange(P + C, device=prompt_ids.device)
    from_BT = column_T + P - length_B1

    def moved(prompt_BP, completion_BC):
        x_BT = torch.cat([prompt_BP, completion_BC], 1).gather(1, from_BT.clamp(max=P + C - 1))
        return x_BT.masked_fill(from_BT >= P + C, 0)

    zero_BP = torch.zeros(prompt_ids.shape, device=prompt_ids.device)
    mask_BC = (batch["completion_mask"] * batch.get("tool_mask", 1)).float()
    mask_BT = moved(zero_BP, mask_BC)
    logp_BC = batch.get("old_per_token_logps", torch.full_like(mask_BC, torch.nan))
    logp_BC = batch.get("sampling_per_token_logps", logp_BC)
    logp_BT = moved(zero_BP, logp_BC.float()).masked_fill(mask_BT == 0, 0)
    return Rollout(moved(prompt_ids, completion_ids), mask_BT, logp_BT), length_B1 + column_T[:C]
