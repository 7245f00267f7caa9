"""Long tests of what test_ranks.py shows quickly; run by name: python -m pytest -s tests/soak

Ten steps on 1, 2 and 4 ranks, whole or sharded; a run killed at fifty random moments; torchrun
itself, restarting, on two nodes; a disk that is really full.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import ranks
from ranks import command, end, farthest, groups, run, start
from runs import metrics, weights

from nanomerci.bonuses import BONUSES

TESTS = Path(ranks.__file__).parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ranks.small_model(tmp_path_factory.mktemp("model"))


def state(folder, step):
    """All tensors of a checkpoint's state.pt and rank files, and of the model."""
    folder = Path(folder) / f"checkpoints/step_{step:06d}"
    found = {}

    def walk(path, x):
        if isinstance(x, torch.Tensor):
            found[path] = x
        for key, value in (
            x.items()
            if isinstance(x, dict)
            else enumerate(x)
            if isinstance(x, list | tuple)
            else ()
        ):
            walk(f"{path}/{key}", value)

    for file in folder.glob("*.pt"):
        walk(file.name, torch.load(file, weights_only=True))
    return found | weights(folder.parent.parent, step)


# ---- 1 rank = 2 ranks = 4 ranks
# Ranks add the same numbers up in another order, so gradients differ by rounding: about 1e-9 where
# their norm is 1. AdamW divides by
# the gradient's own size, so where that is near 0 the rounding is a visible share of a step: of
# 27,168 weights and four seeds, one ended 0.7 % of a step apart at 2e-4, and one 1.6 % at 1e-4. At
# 2e-5 that is below 1e-6, and a wrong gradient would be 20 times that.
LR = 2e-5


@pytest.mark.parametrize(
    "algo, bonus", [("grpo", "none"), ("grpo", "cfn"), ("dapo", "none"), ("dapo", "cfn")]
)
def test_ten_steps_on_any_number_of_ranks_are_the_same(algo, bonus, model, tmp_path):
    found = {}
    for world, shard in ((1, "none"), (2, "none"), (4, "none"), (2, "fsdp"), (4, "fsdp")):
        name = f"{world}-{shard}"
        (tmp_path / f"{name}.groups").mkdir()
        folder, status, said = run(
            world,
            tmp_path / name,
            {"GROUPS": str(tmp_path / f"{name}.groups")},
            model=model,
            algo=algo,
            bonus=bonus,
            lr=LR,
            steps=10,
            eval_every=5,
            save_every=0,
            shard=shard,
        )
        assert status == [0] * world, said
        found[name] = weights(folder, 10), metrics(folder), groups(tmp_path / f"{name}.groups")
    one, start = found["1-none"], weights(tmp_path / "1-none", 0)
    print(
        f"\n{algo} {bonus}: {one[1][-1]['prompts']} prompts; the weights moved by up to "
        f"{farthest(one[0], start):.1e}"
    )
    for name, other in found.items():
        apart = farthest(one[0], other[0]), farthest(one[1], other[1])
        print(f"    {name:7s} from one rank: weights {apart[0]:.1e}, metrics {apart[1]:.1e}")
        assert one[2] == other[2] and max(apart) < 1e-6
    assert algo == "grpo" or one[1][-1]["prompts"] > 40  # dynamic sampling did sample more


@pytest.mark.parametrize("bonus", BONUSES)
def test_every_bonus_is_the_same_on_two_ranks(bonus, model, tmp_path):
    """With two prompts per step, so that in some a rank learns from no group. A counter's head
    learns by AdamW too: its novelty differs by as much as tests/test_cfn.py allows for the order of
    visits.
    """
    settings = {"model": model, "algo": "dapo", "bonus": bonus, "prompts": 2, "minibatches": 1}
    found = []
    for world in (1, 2):
        learned = tmp_path / f"{world}.groups"
        learned.mkdir()
        folder = tmp_path / str(world)
        _, status, said = run(world, folder, {"GROUPS": str(learned)}, lr=LR, **settings)
        assert status == [0] * world, said
        found.append((metrics(folder), groups(learned)))
    (one, here), (two, there) = found
    assert here == there and len(here) == 4 * 2
    for a, b in zip(one[1:], two[1:], strict=True):
        for name in ("reward/mean", "entropy", "cfn/invn", "merci/bonus"):
            assert a[name] == pytest.approx(b[name], rel=1e-4), name


@pytest.mark.parametrize("before, after", [(2, 1), (1, 2), (2, 4)])
@pytest.mark.parametrize("shard", ["none", "fsdp"])
def test_resuming_on_another_number_of_ranks(before, after, shard, model, tmp_path):
    settings = {
        "model": model,
        "algo": "dapo",
        "lr": LR,
        "steps": 8,
        "eval_every": 4,
        "save_every": 4,
        "shard": shard,
    }
    whole, status, said = run(before, tmp_path / "whole", **settings)
    assert status == [0] * before, said
    shutil.copytree(whole, tmp_path / "part")
    shutil.rmtree(tmp_path / "part/checkpoints/step_000008")
    _, status, said = run(after, tmp_path / "part", resume=tmp_path / "part")
    assert status == [0] * after, said
    apart = (
        farthest(weights(whole, 8), weights(tmp_path / "part", 8)),
        farthest(metrics(whole), metrics(tmp_path / "part")),
    )
    print(f"\n{shard}, {before} -> {after} ranks: weights {apart[0]:.1e}, metrics {apart[1]:.1e}")
    assert max(apart) < 1e-6


# ---- kill -9 at any moment


@pytest.mark.parametrize("world, kills, shard", [(1, 50, "none"), (2, 10, "none"), (2, 10, "fsdp")])
def test_killed_at_random_moments_it_ends_as_if_nothing_had_been(
    world, kills, shard, model, tmp_path
):
    """Lives of random length, each going on where the one before was killed, until the run is over;
    then the next run.
    """
    settings = {
        "model": model,
        "algo": "dapo",
        "steps": 30,
        "eval_every": 5,
        "save_every": 1,
        "keep_checkpoints": 2,
        "shard": shard,
    }
    began = time.monotonic()
    whole, status, said = run(world, tmp_path / "whole", **settings)
    assert status == [0] * world, said
    life, rng, moments, runs = (time.monotonic() - began) / 4, random.Random(0), [], 0
    while len(moments) < kills:
        folder, status, runs = tmp_path / f"killed{runs}", None, runs + 1
        while status != [0] * world:
            (tmp_path / "phase").write_text("start")
            processes = start(
                world,
                command(folder, resume="auto", **settings),
                tmp_path / "log",
                {"PHASE": str(tmp_path / "phase")},
            )
            time.sleep(rng.random() * life)
            victim = rng.choice(processes)
            if victim.is_alive():
                os.kill(victim.pid, signal.SIGKILL)
            status = end(processes, timeout=90)
            if -signal.SIGKILL in status:
                assert set(status) <= {-signal.SIGKILL, 2, 1}  # the others noticed
                moments.append((tmp_path / "phase").read_text())
            else:
                assert status == [0] * world, (tmp_path / "log.0").read_text()
            assert len(moments) < 5 * kills
        assert metrics(folder) == metrics(whole)
        for name in ("samples.jsonl", "evals.jsonl"):
            assert (folder / name).read_bytes() == (whole / name).read_bytes()
        mine, wanted = state(folder, 30), state(whole, 30)
        assert mine.keys() == wanted.keys()
        assert all(torch.equal(mine[key], wanted[key]) for key in mine)
    print(
        f"\n{world} ranks, {shard}: {len(moments)} kills in {runs} runs,",
        {m: moments.count(m) for m in sorted(set(moments))},
    )


# ---- torchrun itself


@pytest.fixture
def torchrun():
    """Start torchrun on train.py; what it says goes to FOLDER.err. Nothing of it outlives the
    test.
    """
    agents = []

    def go(folder, *options, environment=(), **settings):
        script = [
            "--",
            str(TESTS / "ranks.py"),
        ]  # without the two dashes torchrun takes our --run for its --run-path
        words = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            *options,
            *script,
            *command(folder, **settings)[1:],
        ]
        places = os.pathsep.join([str(TESTS.parent), str(TESTS)])
        around = os.environ | dict(environment) | {"PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
        with open(f"{folder}.err", "a") as said:
            agents.append(
                subprocess.Popen(
                    words,
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                    start_new_session=True,
                    env=around,
                )
            )
        return agents[-1]

    yield go
    for agent in agents:
        for pid in (*children(agent.pid), agent.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        agent.wait()


def children(pid):
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    return sorted(parents.get(pid, []))


def until(true, timeout=120):
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def at(folder, step):
    return lambda: (
        (folder / "metrics.jsonl").exists()
        and f'"step": {step},' in (folder / "metrics.jsonl").read_text()
    )


def test_torchrun_restarts_a_run_whose_rank_died(torchrun, model, tmp_path):
    settings = {"model": model, "algo": "dapo", "steps": 6, "save_every": 1, "shard": "fsdp"}
    whole = run(2, tmp_path / "whole", **settings)[0]
    agent = torchrun(
        tmp_path / "run",
        "--nproc-per-node=2",
        "--max-restarts=2",
        environment={"SLOW": "0.5"},
        **settings,
    )
    for step in (2, 4):
        until(at(tmp_path / "run", step))
        os.kill(children(agent.pid)[-1], signal.SIGKILL)
    assert agent.wait(180) == 0, (tmp_path / "run.err").read_text()
    assert (
        metrics(tmp_path / "run") == metrics(whole)
        and farthest(weights(whole, 6), weights(tmp_path / "run", 6)) == 0
    )


def test_torchrun_passes_sigterm_on_and_all_is_saved(torchrun, model, tmp_path):
    settings = {"model": model, "steps": 6, "save_every": 0}
    whole = run(2, tmp_path / "whole", **settings)[0]
    agent = torchrun(
        tmp_path / "run", "--nproc-per-node=2", environment={"SLOW": "0.5"}, **settings
    )
    until(at(tmp_path / "run", 2))
    agent.send_signal(signal.SIGTERM)
    agent.wait(60)
    said = (tmp_path / "run.err").read_text()
    assert "stopped after step 3; to resume: python train.py --resume" in said
    assert run(2, tmp_path / "run", resume=tmp_path / "run")[1] == [0, 0]
    assert (
        metrics(tmp_path / "run") == metrics(whole)
        and farthest(weights(whole, 6), weights(tmp_path / "run", 6)) == 0
    )


def test_two_nodes(torchrun, model, tmp_path):
    """Two agents, as on two machines: each with an address of its own."""
    settings = {"model": model, "algo": "dapo", "steps": 6, "shard": "fsdp"}
    whole = run(2, tmp_path / "whole", **settings)[0]

    def nodes(folder, port, **more):
        options = [
            "--nnodes=2",
            "--nproc-per-node=1",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint=127.0.0.1:{port}",
            "--rdzv-id=soak",
        ]
        return [
            torchrun(folder, *options, f"--local-addr=127.0.0.{n}", **settings | more)
            for n in (1, 2)
        ]

    agents = nodes(tmp_path / "run", 29611)
    assert [agent.wait(180) for agent in agents] == [0, 0], (tmp_path / "run.err").read_text()
    assert (
        metrics(tmp_path / "run") == metrics(whole)
        and farthest(weights(whole, 6), weights(tmp_path / "run", 6)) == 0
    )

    agents = nodes(
        tmp_path / "cut", 29612, environment={"SLOW": "0.5"}, save_every=1
    )  # a machine goes dark
    until(at(tmp_path / "cut", 2))
    for pid in (agents[1].pid, *children(agents[1].pid)):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not children(agents[0].pid), timeout=60)
    agents[0].kill()
    assert run(2, tmp_path / "cut", resume=tmp_path / "cut")[1] == [0, 0]
    assert metrics(tmp_path / "cut") == metrics(whole)


# ---- a disk that is really full


def test_a_disk_that_is_full(model, tmp_path):
    """A file system of 4 MB: the run ends with one line and status 2; with more room it goes on."""
    (tmp_path / "disk").mkdir()
    train = f"{sys.executable} {TESTS}/ranks.py"
    words = " ".join(
        command("disk/run", model=model, steps=40, save_every=1, keep_checkpoints=30)[1:]
    )
    script = (
        f"mount -t tmpfs -o size=4m disk disk && cd {tmp_path} && {{ {train} {words}; echo "
        "status $?; ls -a disk/run/checkpoints; "
        f"mount -o remount,size=40m disk && {train} --resume disk/run && cmp "
        f"disk/run/samples.jsonl whole/samples.jsonl; echo $?; }}"
    )
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no user namespace to mount a small disk in")
    assert run(1, tmp_path / "whole", model=model, steps=40, save_every=0)[1] == [0]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}", "OMP_NUM_THREADS": "1"},
    )
    assert (
        "error:" in done.stderr
        and "make room, then continue with --resume" in done.stderr
        and "Traceback" not in done.stderr
    ), done.stderr
    assert (
        "status 2" in done.stdout
        and ".partial" not in done.stdout
        and done.stdout.endswith("\n0\n")
    ), done.stdout


# ---- the memory plan


@pytest.mark.parametrize("recipe", ["toy_sql", "smollm2_arithmetic"])
def test_the_memory_plan_is_near_the_measured_peak(recipe, tmp_path):
    """SMOLLM2: folder of the model (python -m nanomerci.lab.smollm2 FOLDER)."""
    words = [
        recipe,
        "--dtype=float32",
        "--steps=2",
        "--threads=1",
        "--report=False",
        f"--out={tmp_path}/run",
    ]
    if recipe == "smollm2_arithmetic":
        if not os.environ.get("SMOLLM2"):
            pytest.skip("SMOLLM2 does not say where the model is")
        words += [
            f"--model={os.environ['SMOLLM2']}",
            "--prompts=4",
            "--eval_problems=8",
            "--eval_k=4",
            "--cfn_pretrain=1",
        ]
    train = [sys.executable, str(TESTS.parent / "train.py"), *words]
    plan = subprocess.run([*train, "--dry_run"], capture_output=True, text=True, check=True).stdout
    planned = float(next(line.split()[1] for line in plan.splitlines() if line.startswith("peak")))
    meter = "import resource, subprocess, sys\n"
    meter += "subprocess.run(sys.argv[1:], check=True, capture_output=True)\n"
    meter += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9)"
    measured = float(
        subprocess.run(
            [sys.executable, "-c", meter, *train], capture_output=True, text=True, check=True
        ).stdout
    )
    print(f"\n{recipe}: planned {planned:.3f} GB, measured {measured:.3f} GB")
    assert abs(planned / measured - 1) < 0.2
