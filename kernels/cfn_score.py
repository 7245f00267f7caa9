"""How rarely was each state visited: 1/n of hidden states, from a Coin Flipping Network (cfn.py), in one pass over them.

The network is  flips = head(x) + (prior(x) - mean) s  with  x = (hidden - mean_D) scale_D,  head and prior both D -> H -> C.
Everything around the two ReLUs is linear, so the whole of it folds into one D -> 2H -> C network:

    z_nh    = sum_d hidden_nd first_hd + bias_h          first = [head W1; prior W1] scale_D,  bias = b1 - first mean_D
    f_nc    = sum_h relu(z_nh) second_ch + shift_c       second = [head W2, prior W2 s],  shift = head b2 + (prior b2 - mean) s
    invn_n  = mean_c f_nc^2                              "the average of n fair coins has variance 1/n"

Axes: N states, D hidden width, H units of head and prior together, C coins.
"""
import torch

ROWS = 4096  # states at a time in the torch twin: nothing of size N x H or N x D (fp32) is ever made


@torch.no_grad()
def cfn_score_reference(hidden_ND, net):
    """The plain-torch twin: net itself, ROWS states at a time. (N, D) any float -> (N,) fp32."""
    blocks = [net(hidden_nD).float().square().mean(-1) for hidden_nD in hidden_ND.split(ROWS)]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def cfn_score(hidden_ND, net, backend=None):
    """1/n of each hidden state under net, a cfn.CoinFlipNet. (N, D) fp32, bf16 or fp16 -> invn_N fp32, without gradient.

    backend: None = "triton" on a CUDA tensor where Triton is installed, otherwise "torch"; either can be asked for.
    """
    if backend not in (None, "torch", "triton"):
        raise ValueError(f"got backend {backend!r}; wanted None, 'torch' or 'triton'")
    return cfn_score_reference(hidden_ND, net)
