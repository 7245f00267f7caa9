"""What only the speed of decoding needs: one KV cache for all slots, the decoding step (captured as
a CUDA graph on a GPU), a copy of the model in the fastest dtype, and how many slots fit.

Axes: S active slots, R rows of a captured graph, V vocabulary, D hidden width.
"""

import copy
import os
from functools import cache

import torch
from transformers.integrations import sdpa_attention

from nanomerci.loop.families import computed_in, heads, masks
from nanomerci.loop.model import CACHE, context
from nanomerci.runtime.log import log0

announced_bytes = 0  # the largest KV cache that was announced


class SlotKVCache:
    """Keys and values of all slots: a tensor (slots, width, heads, head size) per layer. Slot s is
    written at its own position.

    Stands in for a transformers cache, of which a model's forward calls only update() and
    get_seq_length().
    """

    def __init__(self, config, slots, width, dtype, device):
        shape = (config.num_hidden_layers, slots, width, *heads(config))
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.slots, self.width = slots, width
        self.place_S, self.longest = None, 0  # where a forward writes, how many positions it reads

    @property
    def nbytes(self):
        return self.keys.nbytes + self.values.nbytes

    def insert_prefill(self, first, prefilled, repeats):
        """Copy each prefilled prompt to `repeats` slots, from slot `first` on."""
        for layer, filled in enumerate(prefilled.layers):
            for store, new in ((self.keys, filled.keys), (self.values, filled.values)):
                rows = slice(first, first + repeats * len(new))
                copies = new.transpose(1, 2).repeat_interleave(repeats, 0)
                store[layer, rows, : new.shape[2]] = copies.to(store.dtype)

    def move(self, source, target, longest):
        for store in (self.keys, self.values):
            store[:, target, :longest] = store[:, source, :longest]

    def update(self, key, value, layer, *_, **__):
        read = []
        for store, new in ((self.keys[layer], key), (self.values[layer], value)):
            # one copy of whole rows of memory
            store.flatten(0, 1).index_copy_(0, self.place_S, new[:, :, 0].to(store.dtype))
            read.append(store[: len(new), : self.longest].transpose(1, 2))
        return read

    def get_seq_length(self, layer=0):
        return self.longest - 1


class DecodeStep:
    """The decoding step: newest token of the first S slots, its position and the uniform number
    that draws the next one -> the state after the newest token, (S, D), the next token and its
    log-prob.

    On CUDA it is captured once for every power of two of rows and multiple of SPAN positions that
    occurs, and then replayed: one launch in place of hundreds. Rows up to the power of two compute
    something nobody reads, in slots nobody is in.
    """

    SPAN = 256

    def __init__(self, model, cache):
        self.model, self.cache, self.graphs, self.pool = model, cache, {}, None
        # for all captures: a stream of its own would set up every library's workspace anew
        self.stream = torch.cuda.Stream() if model.device.type == "cuda" else None

    def forward(self, token_S, position_S, chance_S, longest, draw):
        rows_S = torch.arange(len(position_S), device=position_S.device)
        self.cache.longest = longest
        self.cache.place_S = rows_S * self.cache.width + position_S
        position_S1 = position_S[:, None]
        position_1L = torch.arange(longest, device=position_S.device)[None]
        # rows that nobody reads stand further on, and must see something too, or there would be NaN
        seeing_S1 = position_S1.clamp(max=longest - 1)
        hidden_S1D = self.model.base_model(
            token_S[:, None],
            position_ids=position_S1,
            attention_mask=masks(self.model.config, seeing_S1, position_1L, self.cache.keys.dtype),
            use_cache=True,
            **{CACHE: self.cache},
        ).last_hidden_state
        hidden_SD = hidden_S1D[:, 0]
        logits_SV = self.model.get_output_embeddings()(hidden_SD)
        return hidden_SD, *draw(logits_SV, chance_S)

    def __call__(self, token_S, position_S, chance_S, longest, draw):
        """draw: sample.sample_token with its options, a functools.partial."""
        if position_S.device.type != "cuda":
            return self.forward(token_S, position_S, chance_S, longest, draw)
        S = len(token_S)
        rows = min(1 << (S - 1).bit_length(), self.cache.slots)
        longest = min(-(-longest // self.SPAN) * self.SPAN, self.cache.width)
        key = rows, longest, *sorted(draw.keywords.items())
        if key not in self.graphs:
            self.graphs[key] = self.capture(rows, longest, draw)
        graph, given, made = self.graphs[key]
        for input_R, x_S in zip(given, (token_S, position_S, chance_S), strict=True):
            input_R[:S] = x_S
        graph.replay()
        return [output_R[:S] for output_R in made]

    def capture(self, rows, longest, draw):
        # The rows write into the last column, which a row uses in its last step at the earliest:
        # while the graph warms up and is captured, no key in use is touched.
        token_R = torch.zeros(rows, dtype=torch.int64, device=self.model.device)
        position_R = torch.full_like(token_R, self.cache.width - 1)
        given = token_R, position_R, torch.zeros(rows, device=self.model.device)
        graph = torch.cuda.CUDAGraph()
        dtype, enabled = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
        # without autocast's cache: a cast kept for later would not be part of the graph
        with torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False):
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                # libraries set themselves up on first use, which cannot be captured
                self.forward(*given, longest, draw)
            torch.cuda.current_stream().wait_stream(self.stream)
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                made = self.forward(*given, longest, draw)
        self.pool = graph.pool()  # graphs never run at the same time, so they share scratch memory
        return graph, given, made


class Decoder:
    """What sampling keeps from call to call: the model in the form that samples fastest, the KV
    cache, and with it the captured graphs, which know both by their addresses. Other weights are
    noticed, other modules (an adapter switched off, another attention) are not.

    A cache beyond KEPT of the memory goes after each call: the update needs the room, and a call
    that fills so much takes so long that capturing again costs nothing.
    """

    KEPT = 1 / 8

    def __init__(self, model):
        self.model, self.copy, self.made_for = model, None, None
        self.step, self.slots = None, 0

    def follow(self):
        """The weights are those that the model has now, wherever they lie."""
        autocast = torch.is_autocast_enabled(self.model.device.type)
        places = [p.data_ptr() for p in self.model.parameters()]
        made_for = autocast, computed_in(self.model), places
        if made_for == self.made_for:
            return refresh(self.copy, self.model)
        self.step = self.copy = self.made_for = None  # before their successors ask for memory
        self.copy, self.made_for = inference_copy(self.model), made_for

    def prepare(self, longest, slots):
        """Have a step for rows of `longest` tokens, in `slots` slots if there is room. What is
        there is used again where it suffices, and takes no more than there is room for now.
        """
        dtype = computed_in(self.copy)
        held = self.step.cache.nbytes if self.step else 0
        fit, width, size = max_slots(self.copy, longest, dtype, held)
        if self.step:
            cache, most = self.step.cache, fit * width / self.step.cache.width
            if cache.width >= width and min(slots, fit) <= cache.slots <= most:
                return
        self.step = None
        self.slots = max(1, min(slots, fit))
        announce(self.slots, size, width)
        for path in slower_paths(self.copy.config, dtype, self.copy.device):
            say_once(path)
        with torch.inference_mode():
            cache = SlotKVCache(self.copy.config, self.slots, width, dtype, self.copy.device)
        self.step = DecodeStep(self.copy, cache)

    def release(self, everything=False):
        """After a call: what is too large to be kept goes, or everything."""
        if self.step and (
            everything or self.step.cache.nbytes > self.KEPT * memory(self.model.device)
        ):
            self.step = None


class PackedLinear(torch.nn.Linear):
    """A linear layer that multiplies in bf16 with a copy of its weight, made once per call and laid
    out as oneDNN reads it: for the few rows of a decoding step 1.1 to 2 times as fast.
    """

    def pack(self):
        weight, self.packed_bias = (
            x if x is None else x.detach().bfloat16() for x in (self.weight, self.bias)
        )
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, 16)

    def forward(self, x):
        how = self.packed_bias, "none", [], ""  # nothing is fused with it
        return torch.ops.mkldnn._linear_pointwise(x.bfloat16(), self.packed, *how)


def inference_copy(model):
    """The model in the form that samples fastest with the trainer's numbers: itself, or a copy that
    shares all but what must be cast or packed.

    Under autocast every step would cast every fp32 weight again; linear layers get theirs cast once
    per call, and packed on a CPU. A processor without bf16 arithmetic multiplies fp32 six times as
    fast (measured: 64 against 10 GFLOP/s per core); there bf16 weights are widened.
    """
    kind, dtype = model.device.type, computed_in(model)
    autocast = torch.is_autocast_enabled(kind)
    if kind == "cpu" and dtype == torch.bfloat16:
        if not bf16_arithmetic():
            return model if autocast else copy.deepcopy(model).float()
        if dtype.itemsize * model.num_parameters() > memory(model.device) / 4:
            say_once("weights are not packed to sample, as the copy would fill a quarter of memory")
            return model
        prepare = pack
    elif kind == "cuda" and autocast and model.dtype == torch.float32:
        prepare = cast
    else:
        return model
    tensors = *model.parameters(), *model.buffers(), *getattr(model, "shards", ())
    shared = copy.deepcopy(model, {id(x): x for x in tensors})  # new modules, the same tensors
    for module in shared.modules():
        if isinstance(module, torch.nn.Linear) and (autocast or module.weight.dtype == dtype):
            prepare(module)
    return shared


def pack(layer):
    if type(layer) is torch.nn.Linear:  # a subclass has a forward of its own
        layer.__class__ = PackedLinear
        layer.pack()


def cast(layer):
    for name, value in list(layer.named_parameters(recurse=False)):
        value = value.to(torch.get_autocast_dtype(layer.weight.device.type))
        setattr(layer, name, torch.nn.Parameter(value, requires_grad=False))


@torch.no_grad()
def refresh(shared, model):
    """The weights of an inference_copy that are its own become those that the model has now."""
    names = {"remove_duplicate": False}  # a head tied to the embedding is cast, the embedding not
    theirs = dict(model.named_parameters(**names))
    for name, p in shared.named_parameters(**names):
        if p.data_ptr() != theirs[name].data_ptr():
            p.copy_(theirs[name])
    for module in shared.modules():
        if isinstance(module, PackedLinear):
            module.pack()


@cache
def bf16_arithmetic():
    """Whether this processor multiplies bf16 matrices in hardware, and oneDNN makes use of it."""
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return fast and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def cache_bytes(config, itemsize):
    """Bytes of one position of one row in all layers: a key and a value per head."""
    count, size = heads(config)
    return 2 * config.num_hidden_layers * count * size * itemsize


def memory(device):
    """All of it, of the GPU or of the machine, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def slots_in(free, size, config):
    """How many slots, each of `size` bytes of KV cache and its logits, fit into `free` bytes."""
    return int(free // (size + 12 * config.vocab_size))  # logits: fp32, three times


def max_slots(model, longest, dtype, held=0):
    """How many slots for rows of `longest` tokens fit into half of what is free on the GPU, or a
    quarter of the machine's memory. -> slots, their width (on CUDA whole SPANs, as far as the model
    has positions), bytes of one in the KV cache.

    held: bytes on the GPU that count as free, of a cache that would go.
    """
    config, device, width = model.config, model.device, longest
    if device.type == "cuda":
        width = max(longest, min(-(-longest // DecodeStep.SPAN) * DecodeStep.SPAN, context(model)))
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = (torch.cuda.mem_get_info(device)[0] + unused + held) // 2
    else:
        free = memory(device) // 4
    size = width * cache_bytes(config, dtype.itemsize)
    return slots_in(free, size, config), width, size


def slower_paths(config, dtype, device):
    """What attention does on a GPU for want of something faster, where query heads share keys."""
    if device.type != "cuda" or config.num_attention_heads == heads(config)[0]:
        return []
    paths = []
    if not hasattr(sdpa_attention, "pack_gqa"):
        paths.append(
            "sampling copies keys and values for each query head; transformers 5.23 does not"
        )
    if dtype == torch.float32:
        paths.append("float32 attention builds all scores at once; --dtype bfloat16 does not")
    return paths


@cache
def say_once(text):
    log0(f"slower: {text}")


def announce(slots, size, width):
    """Say how large the KV cache is: once, and again when it is half as much more."""
    global announced_bytes
    if slots * size > 1.5 * announced_bytes:
        announced_bytes = slots * size
        mebibytes = announced_bytes / 2**20
        log0(f"sampler: {slots} slots of {width} positions, {mebibytes:,.0f} MiB of KV cache")
