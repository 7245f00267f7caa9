"""How near the machine's limits a step came: arithmetic of the update against the peak of the
tensor cores, and the time that sampling would have taken if reading weights and cache were all of
it, against the time it took.

Counted as if every row were read alone, with no recomputation: 2 operations a parameter and token
forward, 4 backward, and those of causal attention (model FLOP utilisation: Chowdhery et al., PaLM,
appendix B).
"""

import torch

from nanomerci.loop.decode import cache_bytes

# peak of dense bf16 arithmetic in FLOP/s, bandwidth of the memory in bytes/s: the makers' data
# sheets. The first name found counts.
PEAKS = {
    "H100 PCIe": (756e12, 2.0e12),
    "H100": (989e12, 3.35e12),
    "H200": (989e12, 4.8e12),
    "B200": (2250e12, 8.0e12),
    "A100-PCIE-40GB": (312e12, 1.555e12),
    "A100-SXM4-40GB": (312e12, 1.555e12),
    "A100": (312e12, 1.935e12),
    "L40S": (362e12, 0.864e12),
}


def peak(device):
    """-> (FLOP/s, bytes/s) of a CUDA device, or None where it is not in the table."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((rates for part, rates in PEAKS.items() if part in name), None)


def forward_flops(config, parameters, length_B):
    """Of one forward over sequences of these lengths: weights, and attention, where a token looks
    at half of its sequence on average.
    """
    length_B = length_B.double()
    return float(
        (
            2 * parameters * length_B
            + 2 * config.num_hidden_layers * config.hidden_size * length_B.square()
        ).sum()
    )


def bytes_read(config, weight_bytes, start_B, end_B, slots, itemsize):
    """Least that sampling must read: all weights at every step of decoding (as many as the longest
    answer has tokens, more if not all rows fit in the slots), and at each token the keys and values
    before it.
    """
    start_B, end_B = start_B.double(), end_B.double()
    length_B = end_B - start_B
    steps = max(float(length_B.max()), float(length_B.sum()) / slots)
    return steps * weight_bytes + cache_bytes(config, itemsize) * float(
        (length_B * (start_B + end_B) / 2).sum()
    )


def utilisation(c, policy, rolls, roll, adv, seconds):
    """Of one step -> {"speed/mfu", "speed/bandwidth"}; {} where the device's peak is not known or
    the arithmetic is not bf16.

    rolls: all that was sampled; roll, adv: what was learned from, where the advantage is not 0;
    seconds: the clock's times.
    """
    rates = peak(policy.device) if c.dtype == "bfloat16" else None
    if not rates:
        return {}
    parameters, learned_B = (
        policy.num_parameters(),
        (adv.view(len(adv), -1) != 0).any(1) | (c.kl_coef > 0),
    )
    flops = 3 * forward_flops(policy.config, parameters, roll.end_B * learned_B)
    least = sum(
        bytes_read(
            policy.config, 2 * parameters, roll.end_B - roll.length_B, roll.end_B, c.max_num_seqs, 2
        )
        for roll in rolls
    )
    return {
        "speed/mfu": flops / rates[0] / seconds["time/update"],
        "speed/bandwidth": least / rates[1] / seconds["time/sample"],
    }
