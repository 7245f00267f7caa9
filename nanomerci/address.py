"""Randomness by address: a random number is a function of where it is used, never of what was drawn
before it.

An address names one use: address("draw", seed, step, row, position). Hashing it gives 64 fair bits,
so a sample does not depend on the order of the batch, on how many processes share the work, or on
whether the run was killed and resumed; and a number that is needed again (the coins of a visit) is
computed again instead of being stored.
"""

import zlib

import torch

# as int64, whose top bit is the sign
GOLDEN, MIX_1, MIX_2 = (
    bits - (1 << 64) for bits in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def _xor_shift(x, bits):  # x ^ (x >>> bits): torch's >> copies the sign, the mask drops it
    return x ^ ((x >> bits) & ((1 << (64 - bits)) - 1))


def mix(x):
    """64 bits in, 64 well-mixed bits out (the finaliser of SplitMix64; Steele, Lea, Flood 2014).
    int64 tensor, any shape.
    """
    x = _xor_shift(x, 30) * MIX_1
    x = _xor_shift(x, 27) * MIX_2
    return _xor_shift(x, 31)


def address(*parts):
    """Strings, ints and int64 tensors, broadcast against each other -> int64 tensor of hashes."""
    tensors = [p for p in parts if isinstance(p, torch.Tensor)]
    state = torch.zeros((), dtype=torch.int64, device=tensors[0].device if tensors else None)
    for part in parts:
        if isinstance(part, str):
            part = zlib.crc32(part.encode())
        state = mix(state + part + GOLDEN)
    return state


def uniform(address_):
    """int64 addresses -> float32 in [0, 1), in steps of 2^-23 so that u * total < total also after
    rounding.
    """
    return ((address_ >> 41) & 0x7FFFFF).float() * 2.0**-23


def seed(*parts) -> int:
    """The same as a plain non-negative int, for generators that want one."""
    return int(address(*parts)) & 0x7FFFFFFFFFFFFFFF
