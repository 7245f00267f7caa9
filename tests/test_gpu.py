"""What would go wrong on a GPU, shown without one: by itself, and in whole runs on the pretended
device of pretend.py.
"""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from once import WORDS, Once
from ranks import farthest
from runs import TIMES, metrics, same_weights, weights
from torch.utils._python_dispatch import TorchDispatchMode

from nanomerci import sample, train
from nanomerci.bonuses import BONUSES
from nanomerci.kernels import logprob
from nanomerci.loop import decode
from nanomerci.loop.decode import Decoder
from nanomerci.loop.model import enable_gradient_checkpointing
from nanomerci.loop.rollout import Rollout
from nanomerci.runtime import config, ranks
from nanomerci.sample import check_model, generate
from nanomerci.view import ask


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
        frozen = ranks.frozen(model, "none", dtype, torch.device("cpu"))
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


def test_a_slower_attention_is_said_once(small, gpu, monkeypatch, capsys):
    """Where query heads share keys: copies of them in older transformers, all scores in fp32."""
    decode.say_once.cache_clear()
    monkeypatch.setattr(decode, "sdpa_attention", SimpleNamespace())
    model = small("llama")
    for device, words in (("cpu", 0), ("cuda", 2), ("cuda", 0)):
        generate(model.to(device), PROMPTS, 2, max_new_tokens=2, eos_id=1)
        assert capsys.readouterr().err.count("slower: ") == words
    paths = partial(decode.slower_paths, model.config, device=torch.device("cuda"))
    assert len(paths(dtype=torch.bfloat16)) == 1
    monkeypatch.setattr(decode, "sdpa_attention", SimpleNamespace(pack_gqa=1))
    assert not paths(dtype=torch.bfloat16)
    model.config.num_key_value_heads = model.config.num_attention_heads
    assert not paths(dtype=torch.float32)


# ---- on the pretended device

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [15, 16]]

# AdamW divides by the gradient's size: lr 3e-3 times 1 % in 8 updates, as in test_ranks.py. A graph
# computes more rows and more keys than are read, so its sums come in another order.
ROUNDING = 8 * 3e-3 * 0.01


def test_the_device_refuses_what_cuda_refuses(gpu):
    x, y = torch.ones(3, device="cuda"), torch.ones(3)
    assert x.is_cuda and (x * 2.0 + torch.tensor(1.0)).device == torch.device("cuda:0")
    for mixed in (lambda: x + y, lambda: torch.cat([x, y]), lambda: y[x.long()]):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    assert x[torch.tensor([0, 2])].tolist() == y[:2].to("cuda").cpu().tolist() == [1.0, 1.0]
    assert gpu.waits.total() == 2 and gpu.copies.total() == 2
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total = x.add_(1.0).sum()
    assert x.tolist() == [1.0] * 3 and total.isnan()
    for _ in range(2):
        graph.replay()
    assert x.tolist() == [3.0] * 3 and total.item() == 9.0
    for illegal in (total.item, x.nonzero, lambda: x.copy_(y)):
        with (
            pytest.raises(RuntimeError, match="when stream is capturing"),
            torch.cuda.graph(torch.cuda.CUDAGraph()),
        ):
            illegal()


def test_responses_are_read_with_one_wait(gpu):
    mask_BT = torch.tensor([[0.0, 1, 1, 1], [0, 0, 1, 0], [1, 1, 0, 0]])
    tokens_BT = torch.arange(12).view(3, 4)
    rollout = Rollout(*(x_BT.to("cuda") for x_BT in (tokens_BT, mask_BT, mask_BT)))
    assert rollout.responses() == [[1, 2, 3], [6], [8, 9]]
    assert gpu.waits.total() == 1


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_captured_decoding_samples_what_decoding_samples(small, gpu, family):
    """Slots are left, moved and filled again; graphs of 8, 4, 2 and 1 rows at most."""
    how = {"max_new_tokens": 10, "eos_id": [1, 2, 3], "seed": 5}
    options = sample.SampleOptions(slots=7)
    here = generate(small(family), PROMPTS, 3, **how, options=options)
    assert not gpu.launches
    there = generate(small(family).to("cuda"), PROMPTS, 3, **how, options=options)
    assert there.responses() == here.responses()
    assert torch.allclose(there.logp_BT.cpu(), here.logp_BT, atol=1e-5)
    assert 1 <= len(gpu.captures) <= 4


@pytest.mark.parametrize("autocast", [False, True])
def test_a_second_round_captures_nothing_and_follows_the_weights(small, gpu, autocast):
    """Under autocast the graphs read bf16 weights, which are cast again in their place."""
    how = {"max_new_tokens": 10, "eos_id": [1, 2, 3], "seed": 5}
    models = {device: small("qwen2").to(device) for device in ("cpu", "cuda")}
    model = models["cuda"]
    decoder = Decoder(model)
    options = sample.SampleOptions(decoder=decoder)
    for learned in (1.0, 1.2):
        with torch.no_grad():
            for p in [*models["cpu"].parameters(), *model.parameters()]:
                p.mul_(learned)
        captures, before = len(gpu.captures), gpu.launches.total()
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            there = generate(model, PROMPTS, 3, **how, options=options)
        once, launched = len(gpu.captures) - captures, gpu.launches.total() - before
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            new = generate(model, PROMPTS, 3, **how)
        assert there.responses() == new.responses() and there.logp_BT.equal(new.logp_BT)
        if not autocast:
            here = generate(models["cpu"], PROMPTS, 3, **how)
            assert there.responses() == here.responses()
        assert (once > 0) == (learned == 1.0)
    assert (decoder.copy is not model) == autocast
    # In a step of decoding: 3 to gather what is newest and 3 to hand it over, the graph, the state
    # it is for, 3 to write it down, 10 to see who has ended, and at most 20 to let them leave. In a
    # call: the prompts' prefill, 30 in a layer and 5 to copy into the slots; a weight's cast each.
    steps = max(map(len, there.responses()))
    most = 40 * steps + 35 * model.config.num_hidden_layers + 60
    assert launched <= most + len(list(model.parameters()))


def test_weights_are_cast_or_sharded_on_their_way_to_a_gpu(gpu, small_model, tmp_path, monkeypatch):
    """Whole and in fp32 they lie in the CPU's memory alone."""
    shard, given = ranks.shard, []

    def watched(model, *how):
        given.append(model.device.type)
        return shard(model, *how)

    monkeypatch.setattr(ranks, "shard", watched)
    c = train.settle(config.parse([f"--model={small_model(WORDS)}", "--device=cuda"]))
    models = train.Models.load(c, tmp_path, Once(), torch.device("cuda", 0))
    assert given == ["cpu"] and models.policy.device.type == models.features.device.type == "cuda"
    assert (models.policy.dtype, models.features.dtype) == (torch.float32, torch.bfloat16)
    assert not gpu.launches  # the model was checked where it was


@pytest.fixture
def updates(gpu, monkeypatch):
    """For each update of the policy, how often it waited for the device."""
    return watched(monkeypatch, lambda: gpu.waits.total())


def watched(monkeypatch, count):
    """By how much an update of the policy raised the count; one number for each."""
    update, found = train.update, []

    def call(*arguments):
        before = count()
        learned = update(*arguments)
        found.append(count() - before)
        return learned

    monkeypatch.setattr(train, "update", call)
    return found


def test_a_run_on_a_gpu_is_the_run_on_a_cpu(run, gpu, updates):
    here = run("here", device="cpu")
    assert not gpu.launches and not gpu.waits
    there = run("there", device="cuda")
    assert farthest(metrics(here), metrics(there)) < ROUNDING
    assert farthest(weights(here, 4), weights(there, 4)) < ROUNDING
    # A mini-batch waits for its rows and its micro-batches, 4 times, for its norm, twice, and a
    # micro-batch for its shape and its prompts, 7 times, here one in a mini-batch; the log-probs
    # before the update as often once. Nothing waits per row or per parameter.
    assert max(updates[-4:]) <= 2 * (4 + 2 + 7) + (3 + 7)
    # a step of decoding waits for "has a row ended?", and 6 times where one has; a call twice
    steps, calls = gpu.launches["replay"], 1 + 4 + 4 + 2 * 3
    waited = sum(n for (_, place), n in gpu.waits.items() if place.startswith("sample.py"))
    assert 0 < waited <= 7 * steps + 3 * calls
    record = [n for (_, place), n in gpu.waits.items() if place.startswith("metrics.py")]
    assert sum(record) <= 4 * 16  # in a step


def test_launches_do_not_grow_with_rows_or_tokens(run, gpu, monkeypatch):
    """Nothing is done row by row. An update of two layers is 910 launches: with 5 us for each the
    CPU keeps ahead of any GPU whose update takes longer than 5 ms.
    """
    launches = watched(monkeypatch, lambda: gpu.launches.total())
    common = {"device": "cuda", "minibatches": 1, "steps": 2, "eval_every": 0, "algo": "grpo"}
    for group in (4, 16):
        run(f"of {group}", group=group, **common)
    assert launches[:2] == launches[2:] and max(launches) <= 1000


def test_a_run_resumed_on_a_gpu_goes_on_bit_for_bit(run, gpu, updates):
    whole, half = run("whole", device="cuda"), run("half", device="cuda", steps=2)
    before = updates[:4]
    resumed = run("resumed", resume=half, steps=4)
    assert metrics(resumed) == metrics(whole)
    assert same_weights(weights(resumed, 4), weights(whole, 4))
    # AdamW's step numbers on the GPU would be waited for, each of them
    assert updates[-2:] == before[2:]


@pytest.mark.slow
@pytest.mark.parametrize("bonus", BONUSES)
@pytest.mark.parametrize("more", [{"kl_coef": 0.1}, {"algo": "dapo", "cfn_features": "policy"}])
def test_every_bonus_trains_in_bf16_and_resumes(run, gpu, bonus, more):
    options = {"device": "cuda", "dtype": "bfloat16", "bonus": bonus, "oracle_counts": True}
    options |= {"gradient_checkpointing": "algo" in more, "overlong_buffer": 2}
    whole = run("whole", **options, **more)
    resumed = run("resumed", resume=run("half", **options, **more, steps=2), steps=4)
    drop = (*TIMES, "speed/")
    assert metrics(resumed, drop) == metrics(whole, drop) and gpu.captures
    assert all(w.isfinite().all() for w in weights(whole, 4).values())


@pytest.mark.slow
def test_a_run_of_a_gpu_goes_on_on_a_cpu_and_back(run, gpu):
    """What a checkpoint holds is read onto whatever device goes on."""
    for bonus in ("cfn", "elliptical", "outcome"):
        options = {"bonus": bonus, "eval_every": 1}
        first = run(bonus, device="cuda", **options, steps=2)
        config = first / "config.yaml"
        for steps, there, here in ((3, "cuda", "cpu"), (4, "cpu", "cuda")):
            config.write_text(config.read_text().replace(f"device: {there}", f"device: {here}"))
            run(bonus, resume=first, steps=steps)
        rows = metrics(first)
        assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
        assert farthest(rows, metrics(run(f"{bonus} there", device="cuda", **options))) < ROUNDING


@pytest.mark.slow
def test_pictures_and_evaluations_of_a_model_on_a_gpu(run, gpu, tmp_path, capsys):
    folder, problems = run("run", device="cuda"), tmp_path / "mine.jsonl"
    picture, table = tmp_path / "picture.html", tmp_path / "answers.jsonl"
    where = ["--device", "cuda", "--max_new_tokens", "8"]
    words = [str(folder), "a b", "-n", "4", *where, "--heatmap", str(picture)]
    ask.answer(ask.arguments(words), sample.Sampler, check_model)
    assert "a" in capsys.readouterr().out and "invn" in picture.read_text()
    problems.write_text("".join(f'{{"problem": "a {x}", "answer": "{x}"}}\n' for x in "bcd"))
    words = [str(folder), "--eval", str(problems), *where, "-k", "4", "--out", str(table)]
    ask.evaluate(ask.arguments(words), sample.Sampler, check_model)
    assert table.read_text().count('"id"') == 3
