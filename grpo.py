"""Group Relative Policy Optimisation (DeepSeekMath, arXiv 2402.03300), outcome rewards only.

Sample G responses per prompt, reward each, and use the group as its own baseline: a response's
advantage is how far its reward lies above the group's mean, in the group's standard deviations.
Then PPO's clipped surrogate on every token.

Here: advantage, clipped surrogate, k3 KL, the weights that turn per-token losses into one number;
Dr.GRPO's two changes. Not here: a value network, process rewards; sampling and updates (train.py).
Run alone: `python grpo.py` prints a group's advantages and loss beside values computed by hand.

Axes: P prompts, G responses per prompt, B = P*G rows, T token positions.
"""

import torch


def advantage(reward_PG, correction=1, eps=1e-6):  # [GRPO:advantage]
    """(r - mean) / (std + eps) within each group. correction=1: unbiased std, as verl and TRL; 0:
    population std.

    A group with identical rewards gets advantage 0 (no learning signal).
    """
    centred_PG = centred(reward_PG)
    var_P1 = centred_PG.square().sum(1, keepdim=True) / max(reward_PG.shape[1] - correction, 1)
    return centred_PG / (var_P1.sqrt() + eps)


def centred(reward_PG):  # [DrGRPO:advantage]
    """r - mean: Dr.GRPO (arXiv 2503.20783) drops the std, which over-weights very easy and very
    hard prompts.
    """
    # the shift changes nothing, but makes equal rewards exactly 0 whatever the rounding
    shifted_PG = reward_PG - reward_PG[:, :1]
    return shifted_PG - shifted_PG.mean(1, keepdim=True)


def per_token(adv_B):
    """One advantage per response, (B,), stands for all its tokens: (B, 1). One per token, (B, T),
    is left as it is.
    """
    return adv_B if adv_B.dim() == 2 else adv_B[:, None]


def ratio(logp_BT, logp_old_BT):
    """pi / pi_old of each token; the log-ratio is kept within +-20 so that one absurd token cannot
    overflow the batch.
    """
    return (logp_BT - logp_old_BT).clamp(-20, 20).exp()


def surrogate(logp_BT, logp_old_BT, adv_B, clip_low=0.2, clip_high=0.2):  # [GRPO:surrogate]
    """Per-token loss -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), shape (B, T). adv:
    (B,), or (B, T) per token.
    """
    adv_BT = per_token(adv_B)
    rho_BT = ratio(logp_BT, logp_old_BT)
    return -torch.minimum(rho_BT * adv_BT, rho_BT.clamp(1 - clip_low, 1 + clip_high) * adv_BT)


def clipped(logp_BT, logp_old_BT, adv_B, clip_low=0.2, clip_high=0.2):
    """Tokens whose gradient is zeroed by clipping: (low, high) masks, bool (B, T). Low only matters
    for A < 0, high for A > 0.
    """
    rho_BT, adv_BT = ratio(logp_BT, logp_old_BT), per_token(adv_B)
    return (rho_BT < 1 - clip_low) & (adv_BT < 0), (rho_BT > 1 + clip_high) & (adv_BT > 0)


def kl(logp_BT, logp_ref_BT):  # [GRPO:kl]
    """k3 estimate of KL(pi || pi_ref) per token: exp(d) - d - 1 with d = log pi_ref - log pi;
    unbiased and never negative.
    """
    d_BT = (logp_ref_BT - logp_BT).clamp(-20, 20)
    return d_BT.exp() - d_BT - 1


def units(mask_BT):
    """Loss denominator: non-empty responses. The sum over all ranks is the `total` of weights()."""
    return mask_BT.any(1).sum()


def weights(mask_BT, total):  # [GRPO:reduction]
    """Weight of each token's loss, (B, T): every response counts 1 / total, shared equally by its
    tokens.

    Summed over all ranks and micro-batches the weights are 1, so the loss cannot depend on how the
    batch was cut up.
    """
    return mask_BT / (mask_BT.sum(1, keepdim=True).clamp(min=1) * total)


def weights_constant(mask_BT, total, length):  # [DrGRPO:reduction]
    """Dr.GRPO: every token counts 1 / (total * length) with one constant length, so that long
    responses are not favoured.

    The one reduction whose weights sum to less than 1 (to 1 when every response has `length`
    tokens).
    """
    return mask_BT / (total * length)


if __name__ == "__main__":
    reward_PG = torch.tensor([[1.0, 0, 0, 1], [0, 0, 1, 0]])
    adv_PG = advantage(reward_PG)
    # (1 - .5) / sqrt(1/3), (1 - .25) / sqrt(1/4)
    by_hand = [[0.866, -0.866, -0.866, 0.866], [-0.5, -0.5, 1.5, -0.5]]
    print("rewards             advantages                          by hand")
    for reward_G, adv_G, hand in zip(reward_PG.int(), adv_PG.tolist(), by_hand, strict=True):
        rounded = [round(a, 3) for a in adv_G]
        print(f"{str(reward_G.tolist()):14s}  {str(rounded):34s}  {hand}")
    mask_BT = torch.ones(8, 3)
    rho_B = torch.tensor([1.5, 1.1, 0.5, 0.9, 1.0, 1.0, 1.3, 1.0])
    loss_BT = surrogate(rho_B.log()[:, None].expand(8, 3), torch.zeros(8, 3), adv_PG.flatten())
    loss = (loss_BT * weights(mask_BT, units(mask_BT))).sum()
    # min(rho A, clip(rho) A): 1.2 * .866, 1.1 * -.866, .8 * -.866, .9 * .866, -.5, -.5, 1.2 * 1.5,
    # -.5
    print(f"loss {loss:.4f}   by hand {-(0.8660254 * (1.2 - 1.1 - 0.8 + 0.9) - 1.5 + 1.8) / 8:.4f}")
