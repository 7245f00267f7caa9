"""What a step logs: {metric: (sum, count)}, to be added up over ranks; docs/metrics.md explains
each. And the group of responses that samples.jsonl shows.

Axes: P prompts, G responses per prompt, B = P*G rows, T token positions.
"""

from nanomerci import dapo
from nanomerci.loop.text import token_texts
from nanomerci.tasks.graders.pool import OUTCOMES

COLOURED = 1000  # tokens of a response that keep their 1/n, for the report's heat map


def per_response(adv, mask_BT):
    """(B,) as it is; per-token values (B, T) -> their mean over each response."""
    if adv.dim() == 1:
        return adv
    return (adv * mask_BT).sum(1) / mask_BT.sum(1).clamp(min=1)


def step_metrics(seen, batch, adv_PG, shaped_adv):
    """seen: all groups sampled in this step; batch: those learned from, with their advantage before
    and after the bonus.
    """
    shaped_B = per_response(shaped_adv, batch.rollout.mask_BT)
    return (
        batch_metrics(seen)
        | bonus_metrics(batch, adv_PG.flatten(), shaped_B)
        | text_metrics(seen)
        | outcome_metrics(seen)
    )


def batch_metrics(seen):
    """Rewards, groups, entropy, lengths, novelty."""
    rollout, mask_BT = seen.rollout, seen.rollout.mask_BT
    B, P, tokens = len(seen.text_B), len(seen.number_P), mask_BT.sum()
    mixed_P, correct_P = dapo.mixed(seen.graded_PG), seen.correct_PG.all(1)
    kept = {}
    for n, name in enumerate(("merci/kept_top", "merci/kept_run", "merci/kept")):
        kept[name] = ((seen.passed_BT > n) & (seen.novelty_BT > 0)).sum(), tokens
    return {
        "reward/mean": (sum(grade.reward for grade in seen.grade_B), B),
        "groups/mixed": (mixed_P.sum(), P),
        "groups/all_right": ((~mixed_P & correct_P).sum(), P),
        "groups/all_wrong": ((~mixed_P & ~correct_P).sum(), P),
        "entropy": (-rollout.logp_BT.sum(), tokens),
        "length/mean": (tokens, B),
        "cfn/invn": ((seen.novelty_BT * mask_BT).sum(), tokens),
        "merci/bonus": (seen.bonus_PG.sum(), B),
        **kept,
    }


def bonus_metrics(batch, adv_B, shaped_B):
    """Where the bonus went."""
    paid_B, bonus_B = (shaped_B - adv_B).abs(), batch.bonus_PG.flatten()
    correct_B = batch.correct_PG.flatten()
    return {
        "merci/share": (paid_B.sum(), shaped_B.abs().sum()),
        "merci/on_wrong": (paid_B[~correct_B].sum(), paid_B.sum()),
        "merci/novelty_right": (bonus_B[correct_B].sum(), correct_B.sum()),
        "merci/novelty_wrong": (bonus_B[~correct_B].sum(), (~correct_B).sum()),
        "merci/length_corr": length_correlation(
            batch.rollout.length_B.view_as(batch.bonus_PG), batch.bonus_PG
        ),
    }


def length_correlation(length_PG, bonus_PG):
    """Of length and bonus within a group. -> (sum over the groups in which both vary, how many)"""
    length_PG = length_PG - length_PG.mean(1, keepdim=True)
    bonus_PG = bonus_PG - bonus_PG.mean(1, keepdim=True)
    together_P = (length_PG * bonus_PG).sum(1)
    alone_P = (length_PG.square().sum(1) * bonus_PG.square().sum(1)).sqrt()
    varied_P = alone_P > 1e-9
    return (together_P / alone_P)[varied_P].sum(), varied_P.sum()


def text_metrics(seen):
    """Does the policy write the same over and over, or no text at all?"""
    repeated = total = 0
    for ids in seen.rollout.responses():
        fours = list(zip(ids, ids[1:], ids[2:], ids[3:], strict=False))
        repeated += len(fours) - len(set(fours))
        total += len(fours)
    strange = sum(map(is_gibberish, seen.text_B))
    return {"text/repetition": (repeated, total), "text/gibberish": (strange, len(seen.text_B))}


def is_gibberish(text):
    """Whether it has replacement or control characters."""
    return any(x == "\ufffd" or x < " " and x not in "\n\r\t" for x in text)


def outcome_metrics(seen):
    outcomes = [grade.outcome for grade in seen.grade_B]
    return {f"outcome/{name}": (outcomes.count(name), len(outcomes)) for name in OUTCOMES}


def sample_record(step, batch, shaped_adv, tokenizer):
    """The first group that was learned from, for samples.jsonl: what was asked, written, graded,
    what it was worth, how novel each token was, and whether the filters kept it.
    """
    G, rollout = batch.group, batch.rollout
    adv_B = per_response(shaped_adv, rollout.mask_BT)
    record = {
        "step": step,
        "id": batch.problem_P[0].id,
        "prompt": batch.problem_P[0].prompt,
        "answers": batch.text_B[:G],
        "outcomes": [grade.outcome for grade in batch.grade_B[:G]],
        "advantage": [round(a, 4) for a in adv_B[:G].tolist()],
        "bonus": [round(b, 5) for b in batch.bonus_PG[0].tolist()],
    }
    if not batch.novelty_BT[:G].any():
        return record

    def shown(x_BT):
        rows = zip(x_BT[:G].cpu(), rollout.mask_BT[:G].cpu(), strict=True)
        return [x_T[mask_T > 0][:COLOURED].tolist() for x_T, mask_T in rows]

    return record | {
        "tokens": [token_texts(tokenizer, ids) for ids in shown(rollout.tokens_BT)],
        "invn": [list(map(three_digits, row)) for row in shown(batch.novelty_BT)],
        "kept": ["".join(map("-x".__getitem__, row)) for row in shown(batch.kept_BT)],
        "cut": [max(0, int(length) - COLOURED) for length in rollout.length_B[:G].tolist()],
    }


def three_digits(x):
    return float(f"{x:.3g}")
