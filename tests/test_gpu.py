"""What would go wrong on a GPU, shown without one."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nanomerci.kernels import logprob
from nanomerci.loop.model import enable_gradient_checkpointing, frozen_copy
from nanomerci.runtime import ranks
from nanomerci.sample import check_model


def test_attention_is_not_left_to_cudnn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        assert ranks.start("auto") == torch.device("cuda:0")
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_the_check_of_a_model_does_without_triton(small, monkeypatch):
    """As on a GPU, where Triton is the default, without its driver."""

    def choose(backend, x, kernel):
        if backend != "torch":
            raise RuntimeError("0 active drivers ([]). There should only be one.")
        return backend

    monkeypatch.setattr(logprob, "choose", choose)
    check_model(small("llama"), "sound")


class Made(TorchDispatchMode):
    """Holds every tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.tensors = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        if isinstance(made, torch.Tensor):
            self.tensors.append(made)
        return made


def memory(tensors):
    """{place: bytes}"""
    storages = [x.untyped_storage() for x in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_cast_while_they_are_copied(small, dtype):
    """There is never a copy in fp32 before the one that is wanted."""
    model = small("qwen2")
    model.lm_head.weight = model.model.embed_tokens.weight
    before = memory([*model.parameters(), *model.buffers()])
    with Made() as made:
        frozen = frozen_copy(model, torch.device("cpu"), dtype)
    needed = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    needed += sum(b.nbytes for b in model.buffers())
    fresh = memory(made.tensors)
    assert sum(size for place, size in fresh.items() if place not in before) == needed
    for (name, p), (again, q) in zip(
        model.named_parameters(), frozen.named_parameters(), strict=True
    ):
        assert name == again and q.equal(p.to(dtype)) and q.data_ptr() != p.data_ptr()
        assert p.requires_grad and not q.requires_grad
    for b, c in zip(model.buffers(), frozen.buffers(), strict=True):
        assert c.equal(b) and c.dtype == b.dtype and c.data_ptr() != b.data_ptr()


def test_gradients_of_replicas_are_summed_in_one_exchange(monkeypatch):
    """Two ranks with the same gradients, of which one is here."""

    def model():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))

    def learn(model, factor):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        (factor * model[1](model[0](torch.ones(5, 3))).square().sum()).backward()
        model[1].bias.grad = None  # of a rank whose share taught it nothing
        norm = ranks.step(optimizer, 1e9, "step 1")
        return norm, [p.detach() for p in model.parameters()]

    exchanged = []
    alone_norm, alone = learn(model(), 2.0)
    monkeypatch.setattr(ranks, "world", 2)
    monkeypatch.setattr(ranks.td, "all_reduce", lambda x: exchanged.append(x.numel()) or x.mul_(2))
    norm, together = learn(model(), 1.0)
    assert exchanged == [3 * 4 + 4 + 4 * 2 + 2]
    assert norm == alone_norm and all(map(torch.equal, together, alone))


def test_recomputed_layers_keep_no_state_of_random_numbers(small, monkeypatch):
    model = small("llama")
    enable_gradient_checkpointing(model)
    asked = []
    state = torch.get_rng_state
    monkeypatch.setattr(torch, "get_rng_state", lambda: asked.append(1) or state())
    model(torch.arange(6)[None]).logits.sum().backward()
    assert not asked and model.model.layers[0].mlp.up_proj.weight.grad.any()
