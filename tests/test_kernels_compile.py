"""Every shipped kernel configuration compiled for A100 and H100/H200, without a GPU: no spills,
tensor cores, shared memory.

What this cannot tell: speed, and whether the machine code is right (the interpreter tests check the
values of the source).
"""

import re
import subprocess

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from nanomerci.kernels import cfn_score, draw, logprob  # noqa: E402

pytestmark = pytest.mark.skipif(
    not isinstance(logprob.scan_kernel, triton.JITFunction), reason="Triton is interpreting"
)
SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block may have: A100, H100 and H200
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def compiled(kernel, capability, constants, types, options, odd=()):
    """types: of what is no constant; "*..." are pointers. All pointers and sizes are multiples of
    16 but those in odd.
    """
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    constants = {(names.index(name),): value for name, value in constants.items()}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name] != "constexpr" and name not in odd
    }
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def check(kernel, capability, tmp_path):
    (tmp_path / "cubin").write_bytes(kernel.asm["cubin"])
    usage = subprocess.run(
        [triton.knobs.nvidia.cuobjdump.path, "-res-usage", tmp_path / "cubin"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    registers, stack, local = (
        int(re.search(rf"{what}:(\d+)", usage).group(1)) for what in ("REG", "STACK", "LOCAL")
    )
    assert registers <= 255 and stack == local == 0, f"registers spill: {usage}"
    assert kernel.metadata.shared <= SHARED[capability]


def row_offsets_are_64_bit(kernel, stride="x_stride"):
    """Row times stride: the stride is widened, and used for nothing before. At 32 bits it would
    wrap from 2^31 logits on.
    """
    uses = [
        line
        for line in kernel.asm["ttir"].splitlines()
        if f"%{stride} " in line and "tt.func" not in line
    ]
    return uses and all("arith.extsi" in line and "to i64" in line for line in uses)


def score_configurations():
    """(dtype, H, C): one for each outcome of cfn_score.launch_shape, and more units than one block
    has.
    """
    for dtype in (torch.bfloat16, torch.float32):
        yield from (
            (dtype, H, C)
            for H in ((128, 256, 512, 0) if dtype == torch.bfloat16 else (512, 0))
            for C in (20, 64, 128)
        )
    yield torch.float16, 256, 20


@pytest.mark.parametrize("capability", SHARED)
@pytest.mark.parametrize("dtype, H, C", list(score_configurations()))
def test_score_kernel(capability, dtype, H, C, tmp_path):
    (BN, BD, BH, BC), options = cfn_score.launch_shape(dtype, H, C)
    constants = dict(
        H=max(H, BH),
        BN=BN,
        BD=BD,
        BH=BH,
        BC=BC,
        LAYERS=2 if H else 1,
        CENTRE=dtype == torch.float32,
        UPCAST=False,
        **({} if H else {"bias": None, "second": None}),
    )
    types = (
        dict.fromkeys(("hidden", "first", "second"), "*" + NAMES[dtype])
        | dict.fromkeys(("mean", "bias", "shift", "invn"), "*fp32")
        | dict.fromkeys(("stride", "N", "D", "D_padded", "coins"), "i32")
    )
    kernel = compiled(
        cfn_score.score_kernel, capability, constants, types, options, odd=("N", "coins")
    )
    check(kernel, capability, tmp_path)
    instruction = (
        "wgmma.mma_async"
        if capability == 90 and dtype != torch.float32
        else r"mma.sync|wgmma.mma_async"
    )
    assert len(re.findall(instruction, kernel.asm["ptx"])) >= 2, "no tensor cores"
    assert row_offsets_are_64_bit(kernel, "stride")
    assert "cp.async" in kernel.asm["ptx"], "loads are not pipelined"


COMMON = {
    "first": "i32",
    "N": "i32",
    "width": "i32",
    "x_stride": "i32",
    "out_stride": "i32",
    "ids": "*i64",
}


@pytest.mark.parametrize("capability", SHARED)
@pytest.mark.parametrize(
    "x, first, last, width, odd",
    [
        ("fp32", True, False, 2048, ()),
        ("fp32", False, False, 2048, ()),
        ("fp32", False, True, 2048, ()),
        ("fp32", True, True, 2048, ()),
        ("bf16", True, True, 2048, ()),
        ("fp16", True, True, 2048, ()),
        ("fp32", True, True, 120, ()),
        ("bf16", True, True, 120, ()),
        ("bf16", True, True, 2048, ("width", "x_stride")),
    ],
    ids=str,
)
def test_scan_kernel(capability, x, first, last, width, odd, tmp_path):
    R, B = logprob.launch_shape(width)
    types = (
        COMMON
        | dict.fromkeys(("inverse_t", "max_", "s_", "u_", "target_"), "*fp32")
        | {"x": "*" + x}
    )
    kernel = compiled(
        logprob.scan_kernel,
        capability,
        {"R": R, "B": B, "FIRST": first, "LAST": last},
        types,
        logprob.OPTIONS,
        odd=("N", "first", *odd),
    )
    check(kernel, capability, tmp_path)
    assert row_offsets_are_64_bit(kernel)
    assert odd or "ld.global.v4" in kernel.asm["ptx"], "loads are not 16 bytes wide"


@pytest.mark.parametrize("capability", SHARED)
@pytest.mark.parametrize(
    "x, out, overlap, width",
    [
        ("fp32", "bf16", True, 2048),
        ("fp32", "fp16", True, 2048),
        ("fp32", "fp32", False, 2048),
        ("fp32", "bf16", False, 2048),
        ("bf16", "bf16", False, 2048),
        ("fp16", "fp16", False, 2048),
        ("fp32", "fp32", False, 120),
        ("fp32", "bf16", True, 120),
    ],
)
def test_gradient_kernel(capability, x, out, overlap, width, tmp_path):
    R, B = logprob.launch_shape(width)
    types = (
        COMMON
        | dict.fromkeys(("inverse_t", "max_", "log_s", "entropy", "dlogp", "dentropy"), "*fp32")
        | {"x": "*" + x, "out": "*" + out}
    )
    kernel = compiled(
        logprob.gradient_kernel,
        capability,
        {"R": R, "B": B, "OVERLAP": overlap},
        types,
        logprob.OPTIONS,
        odd=("N", "first"),
    )
    check(kernel, capability, tmp_path)
    ptx = kernel.asm["ptx"]
    assert row_offsets_are_64_bit(kernel)
    assert "ld.global.v4" in ptx
    # in the loop: read, barrier, write; without it one warp overwrites what another has yet to read
    if overlap:
        loop = ptx[ptx.rindex("ld.global.v4") :]
        assert "bar.sync" in loop[: loop.index("st.global")]


@pytest.mark.parametrize("capability", SHARED)
@pytest.mark.parametrize("x", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("odd", [(), ("V", "stride")], ids=["aligned", "odd"])
def test_draw_kernels(capability, x, odd, tmp_path):
    types = (
        {"x": "*" + x, "ids": "*i64", "inverse_t": "fp32"}
        | dict.fromkeys(("tops", "sums", "uniform", "logp"), "*fp32")
        | dict.fromkeys(("stride", "V", "K"), "i32")
    )
    odd = ("K", "inverse_t", *odd)
    tiles = {"TILE": draw.TILE}
    pick = [tiles | {"TILES": n, "GREEDY": n == 16} for n in (1, 2, 16, 64)]
    kernels = [(draw.tile_kernel, tiles), *((draw.pick_kernel, constants) for constants in pick)]
    for kernel, constants in kernels:
        made = compiled(kernel, capability, constants, types, draw.OPTIONS, odd)
        check(made, capability, tmp_path)
        assert row_offsets_are_64_bit(made, "stride")
        assert "stride" in odd or "ld.global.v4" in made.asm["ptx"], "loads not 16 bytes wide"
