"""Several processes are one run: the numbers of one process, a fault's message and what survives
it. Longer: tests/soak.
"""

import os
import shutil
import signal
import time

import pytest
import ranks
import torch
from ranks import command, end, farthest, groups, run, start
from runs import metrics, weights
from transformers import AutoConfig

from nanomerci import train
from nanomerci.loop import cost
from nanomerci.runtime import config

DAPO = {"algo": "dapo", "prompts": 2, "minibatches": 1, "micro_batch_tokens": 40}

# Ranks add the same numbers up in another order. Sums of some 500 terms then differ by up to 500 x
# 6e-8 = 3e-5 of themselves. AdamW divides by the gradient's size, so a step, at most lr = 1e-3,
# changes by that share, and by more only where the gradient is itself no more than rounding: 1 % is
# allowed, in 8 updates. A group that is counted twice, or not at all, moves weights by about lr.
ROUNDING = 8 * 1e-3 * 0.01


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ranks.small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """The same run on one process, on two replicas, on two shards."""
    root = tmp_path_factory.mktemp("whole")
    runs = {}
    for name, world, shard in (("one", 1, "none"), ("replicas", 2, "none"), ("shards", 2, "fsdp")):
        (root / f"{name}.groups").mkdir()
        around = {"GROUPS": str(root / f"{name}.groups")}
        settings = DAPO | {"model": model, "shard": shard}
        runs[name], status, said = run(world, root / name, around, **settings)
        assert status == [0] * world, said
    return runs


@pytest.mark.parametrize("name", ["replicas", "shards"])
def test_two_ranks_are_one(whole, name):
    one, two = whole["one"], whole[name]
    assert groups(f"{one}.groups") == groups(f"{two}.groups")
    assert farthest(metrics(one), metrics(two)) < ROUNDING
    assert farthest(weights(one, 4), weights(two, 4)) < ROUNDING
    assert farthest(weights(one, 4), weights(one, 0)) > 1e-3
    assert (one / "evals.jsonl").read_bytes() == (two / "evals.jsonl").read_bytes()
    parts, remembered = [replay(two, rank) for rank in (0, 1)], replay(one, 0)
    assert 0 < len(parts[0]["address_N"]) < len(remembered["address_N"])  # each visit on one rank
    together_N = torch.cat([part["address_N"] for part in parts])
    assert torch.equal(together_N.sort().values, remembered["address_N"].sort().values)
    assert parts[0]["total"] == parts[1]["total"] == remembered["total"]


@pytest.mark.slow
def test_reference_log_probs_of_a_sharded_copy_are_those_of_a_whole_one(model, tmp_path):
    settings = DAPO | {"model": model, "kl_coef": 0.1, "steps": 2}
    one, status, said = run(1, tmp_path / "one", **settings)
    assert status == [0], said
    two, status, said = run(2, tmp_path / "two", **settings, shard="fsdp")
    assert status == [0, 0], said
    assert farthest(metrics(one), metrics(two)) < ROUNDING
    assert farthest(weights(one, 2), weights(two, 2)) < ROUNDING


def replay(folder, rank):
    """A rank's part of the replay buffer."""
    return torch.load(folder / f"checkpoints/step_000004/rank_{rank:05d}.pt")["bonus"]


@pytest.mark.parametrize("name, world", [("shards", 2), ("shards", 1), ("replicas", 1), ("one", 2)])
def test_resuming_on_another_number_of_ranks(whole, name, world, tmp_path):
    shutil.copytree(whole[name], tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/step_000004")
    folder, status, said = run(world, tmp_path / "run", resume=tmp_path / "run")
    assert status == [0] * world, said
    apart = [
        farthest(weights(folder, 4), weights(whole[name], 4)),
        farthest(metrics(folder), metrics(whole[name])),
    ]
    assert max(apart) < ROUNDING
    if (name, world) == ("shards", 2):
        assert apart == [0, 0]


def test_copies_of_a_sharded_policy(tmp_path):
    """Of the frozen one each rank holds its half; the one to sample from is never stale."""
    assert end(start(2, ["x"], tmp_path / "log", what="stale")) == [0, 0]
    said = (tmp_path / "log.0").read_text()
    assert "reads True" in said
    (share,) = (float(line.split()[1]) for line in said.splitlines() if line.startswith("holds"))
    assert 0.5 <= share < 0.51  # an odd row is padded
    assert "the copy to sample from is older than the policy" in said
    assert "moved True same True" in said


def test_one_rank_without_a_finite_gradient_stops_all_before_the_update(model, tmp_path):
    folder, status, said = run(2, tmp_path / "run", {"POISON": "1:3"}, model=model, save_every=1)
    assert status == [2, 2] and "step 3: the gradient's norm is nan; it was not applied" in said
    assert all(w.isfinite().all() for w in weights(folder, 2).values())
    assert said.count("error:") == 1 and "Traceback" not in said


def begun(folder, step, timeout=60):
    """Wait until a run has logged this step."""
    until, file = time.monotonic() + timeout, folder / "metrics.jsonl"
    while not (file.exists() and f'"step": {step},' in file.read_text()):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_dead_rank_ends_the_others_and_the_same_command_goes_on(model, tmp_path, whole):
    settings, folder = DAPO | {"model": model, "shard": "fsdp"}, tmp_path / "run"
    processes = start(2, command(folder, **settings), tmp_path / "log", {"SLOW": "0.5"})
    begun(folder, 2)
    os.kill(processes[1].pid, signal.SIGKILL)
    assert end(processes, timeout=30) == [2, -9]
    last = (tmp_path / "log.0").read_text().splitlines()[-1]
    assert "rank 0: lost connection to the other ranks" in last
    restarted = {"TORCHELASTIC_RESTART_COUNT": "1"}  # as torchrun --max-restarts says it
    processes = start(2, command(folder, **settings), tmp_path / "again", restarted)
    assert end(processes) == [0, 0]
    assert metrics(folder) == metrics(whole["shards"])
    assert farthest(weights(folder, 4), weights(whole["shards"], 4)) == 0


def test_resume_auto_begins_goes_on_and_refuses_to_change_a_run(model, tmp_path):
    folder, status, _ = run(1, tmp_path / "run", model=model, steps=1, resume="auto")
    assert status == [0] and len(metrics(folder)) == 2
    _, status, _ = run(1, folder, model=model, steps=2, resume="auto")
    assert status == [0] and len(metrics(folder)) == 3
    _, status, said = run(1, folder, model=model, steps=3, resume="auto", lr=0.5)
    assert status == [2] and len(metrics(folder)) == 3
    assert "--lr 0.5: the run in" in said and "has 0.001" in said


@pytest.mark.parametrize("shard", ["none", "fsdp"])
def test_a_full_disk_leaves_the_checkpoint_before(shard, model, tmp_path):
    around = {"FULL": "3", "SLOW": "0.1"}
    folder, status, said = run(2, tmp_path / "run", around, model=model, shard=shard)
    assert status[0] == 2 and status[1] != 0
    assert "step_000004: could not be written" in said
    assert "step_000002, is whole: make room, then continue with --resume" in said
    kept = sorted(p.name for p in (folder / "checkpoints").glob("step_*"))
    assert kept == ["step_000000", "step_000002"]
    assert run(2, folder, resume=folder)[1] == [0, 0] and len(metrics(folder)) == 5
    # what the rank that died last may have left is gone with the next save
    assert not [*(folder / "checkpoints").glob(".*")]


@pytest.mark.parametrize(
    "name", ["model/model.safetensors", "state.pt", "rank_00001.pt", "shards/__1_0.distcp"]
)
def test_a_corrupt_checkpoint_is_named_and_the_one_before_offered(name, whole, tmp_path):
    shutil.copytree(whole["shards"], tmp_path / "run")
    path = tmp_path / "run/checkpoints/step_000004" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    _, status, said = run(1, tmp_path / "run", resume=tmp_path / "run", steps=5)
    assert status == [2] and len(said.splitlines()) == 1
    assert f"step_000004: the checkpoint is corrupt ({name} is not what was written)" in said
    assert "; delete that folder to resume from step_000002" in said


def test_a_signal_in_the_first_evaluation_saves_step_0(model, tmp_path):
    words = command(tmp_path / "run", model=model, eval_problems=8, eval_k=64)
    processes = start(2, words, tmp_path / "log")
    while not (tmp_path / "run/config.yaml").exists():
        time.sleep(0.01)
    for process in processes:
        os.kill(process.pid, signal.SIGTERM)
    assert end(processes) == [0, 0]
    said = (tmp_path / "log.0").read_text()
    assert "stopped after step 0; to resume: python train.py --resume" in said
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["step_000000"]


def test_gradient_checkpointing_changes_memory_not_numbers(model, tmp_path):
    kept, again = (
        run(1, tmp_path / str(r), model=model, steps=2, gradient_checkpointing=r)[0]
        for r in (False, True)
    )
    assert farthest(weights(kept, 2), weights(again, 2)) == 0 and metrics(kept) == metrics(again)


@pytest.mark.slow
def test_the_memory_plan_of_a_sharded_run_is_near_the_measured_peak(tmp_path):
    """Four ranks of a model of 61 M parameters, of which a process itself is a part that is left
    out.
    """
    large = ranks.small_model(tmp_path / "model", width=768, layers=8, heads=8)
    settings = DAPO | {"model": large, "shard": "fsdp", "prompts": 4, "steps": 2, "save_every": 0}
    settings |= {"gradient_checkpointing": True, "eval_every": 0}
    words = command(tmp_path / "run", **settings)
    assert end(start(4, words, tmp_path / "log", what="weighed"), timeout=600) == [0] * 4
    logs = [(tmp_path / f"log.{rank}").read_text() for rank in range(4)]
    held = [int(log.split("held ")[1].split()[0]) for log in logs]
    c = train.settle(config.parse(words[1:]))
    model = AutoConfig.from_pretrained(large)
    n, width = cost.parameters(model), c.max_new_tokens + 6  # the longest prompt
    plan, _ = cost.plan(c, model, n, width, 4, 24e9)
    planned = cost.peak_bytes(plan) - cost.PROCESS
    print(f"\nplanned {planned / 1e6:.0f} MB, measured {[round(h / 1e6) for h in held]}")
    assert n > 6e7
    for peak in held:
        assert 0.75 < planned / peak < 1.25
