"""nanoMERCI: the package behind train.py. From the ground up, each line may use those above it:

    address                     randomness by address: a counter-based random number generator
    kernels/ (top level)        fused Triton kernels, each beside its torch twin
    runtime/                    running: config, ranks, checkpoint, log
    tasks/  tasks/graders/      one file per task; workers that grade and can be killed
    grpo dapo cfn (top level)   the papers' formulas
    merci  counts               uncertainty, filters, trajectory bonus, merge; exact counts
    bonuses/  objectives        one file per bonus, one row per objective
    loop/                       what a training step stands on: model, rollout, collect, evaluate ...
    view/                       looking: ask, heat map, report
    sample  train (top level)   the sampler, the loop
    lab/  bench/  integrations/ experiments, speed, MERCI inside other trainers

The files at the top level of the repository belong to the package: in a checkout its path includes
their folder, a wheel has them inside. So there is one name for each, `nanomerci.cfn`.
"""

from pathlib import Path

_root = Path(__file__).parent.parent
if (_root / "cfn.py").exists():  # a checkout
    __path__.append(str(_root))
