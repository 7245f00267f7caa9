"""entropy: entropy advantage, larger at tokens where the policy is uncertain."""

import torch

from nanomerci.bonuses.base import Bonus, register


@register("entropy")
class Entropy(Bonus):
    """The entropy advantage of Cheng et al. (2506.14758): inside the update, without a merge."""

    def at_tokens(self, adv_B, entropy_BT):
        return entropy_advantage(adv_B, entropy_BT)


def entropy_advantage(adv, entropy_BT, alpha=0.4, kappa=2.0):  # [EntropyAdv:advantage]
    """A_t + min(alpha H_t, |A_t| / kappa), H_t the policy's entropy at token t, without gradient.

    adv: (B,) or (B, T). -> (B, T). Never falls, keeps its sign for kappa > 1; A = 0 stays 0.
    """
    adv_BT = adv if adv.dim() == 2 else adv[:, None].expand_as(entropy_BT)
    return adv_BT + torch.minimum(alpha * entropy_BT.detach(), adv_BT.abs() / kappa)
