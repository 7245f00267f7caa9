"""Fused kernels, each beside its plain-torch twin; they import torch and triton and nothing of nanoMERCI."""
