"""What a run writes while it goes on: samples with the novelty of their tokens, a live report that
costs little, loggers.
"""

import json

import pytest
import torch

from nanomerci.loop.model import tiny
from nanomerci.loop.rollout import Experience, Rollout, pad
from nanomerci.runtime import config, loggers
from nanomerci.runtime import log as log_file
from nanomerci.runtime.log import Log
from nanomerci.tasks.graders.pool import Grade
from tests.once import Problem


@pytest.mark.parametrize("cost, apart", [(0.1, 10), (0.3, 15), (2.0, 100)])
def test_the_live_report_takes_no_more_than_its_share(tmp_path, monkeypatch, cost, apart):
    """A clock of our own: a second a step, and `cost` a report."""
    now, written = [0.0], []
    monkeypatch.setattr(log_file.time, "perf_counter", lambda: now[0])

    def report(folder, pictures):
        written.append(now[0])
        now[0] += cost

    monkeypatch.setattr(report, "report", report)
    log = Log(tmp_path, config.Config(), -1)
    for step in range(1000):
        now[0] += 1.0
        log.step({"step": step})
    gaps = [b - a for a, b in zip(written, written[1:])]
    assert written[0] == 1.0 and apart <= min(gaps) and max(gaps) <= apart + cost + 1.1
    assert len(written) * cost <= 0.021 * now[0] + cost


def test_a_report_is_there_after_the_first_step(tmp_path):
    Log(tmp_path / "run", config.Config(), -1).step({"step": 0, "entropy": 1.0})
    assert (tmp_path / "run/report.html").stat().st_size > 10_000 and not list(
        (tmp_path / "run").glob("*.png")
    )


def experience(tokenizer, novelty=1.0):
    """Two groups of two answers, with the novelties 0, 1, 2 ... from the first column on."""
    texts = ["so a", "b c d", "c", "d d"]
    rows = [tokenizer(f"a a {text}")["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    tokens_BT = pad(rows)
    mask_BT = torch.tensor(
        [[float(2 <= t < len(row)) for t in range(tokens_BT.shape[1])] for row in rows]
    )
    novelty_BT = torch.arange(tokens_BT.shape[1]).expand(4, -1) * mask_BT * novelty
    return Experience(
        torch.tensor([0, 1]),
        [Problem("p0", "a a"), Problem("p1", "a a")],
        Rollout(tokens_BT, mask_BT, mask_BT),
        texts,
        [Grade(1.0, "right"), Grade(0.0, "wrong")] * 2,
        torch.tensor([1.0, 0, 1, 0]),
        novelty_BT,
        torch.tensor([0, 0, 1, 3, 2, 0])[torch.arange(tokens_BT.shape[1])] * mask_BT.long(),
        torch.tensor([0.1, 0.2, 0.3, 0.4]),
        mask_BT * 0,
    )


def logged(folder, batch, adv, tokenizer):
    log = Log(folder, config.Config(), -1)
    log.samples(7, batch, adv, tokenizer)
    return json.loads((folder / "samples.jsonl").read_text())


def test_a_sample_keeps_its_tokens_their_novelty_and_what_the_filters_kept(tmp_path, monkeypatch):
    _, tokenizer = tiny(["so", "a", "b", "c", "d"])
    batch, adv = experience(tokenizer), torch.tensor([1.0, -1.0, 5.0, 5.0])
    record = logged(tmp_path / "a", batch, adv, tokenizer)
    assert (record["step"], record["id"], record["answers"]) == (
        7,
        "p0",
        ["so a", "b c d"],
    ) and record["advantage"] == [1, -1]
    assert record["tokens"] == [["so", " a", " <eos>"], ["b", " c", " d", " <eos>"]]
    assert (
        record["invn"] == [[2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0]]
        and record["kept"] == ["-x-", "-x--"]
        and record["cut"] == [0, 0]
    )
    monkeypatch.setattr(log_file, "COLOURED", 3)
    record = logged(tmp_path / "b", batch, adv, tokenizer)
    assert (
        record["tokens"][1] == ["b", " c", " d"]
        and record["kept"] == ["-x-", "-x-"]
        and record["cut"] == [0, 1]
    )
    assert "tokens" not in logged(
        tmp_path / "c", experience(tokenizer, novelty=0.0), adv, tokenizer
    )  # without a bonus


def test_the_tally_counts_what_each_filter_left():
    batch = experience(tiny(["so", "a", "b", "c", "d"])[1])
    counts = log_file.tally(batch, batch, torch.zeros(2, 2), torch.zeros(4))
    assert [counts[f"merci/{name}"] for name in ("kept_top", "kept_run", "kept")] == [
        (11, 12),
        (7, 12),
        (4, 12),
    ]


METRICS = [
    {"step": n, "reward/mean": n / 4, "eval/mean@8": 0.5, "eval/mean@8_ci": [0.4, 0.6]}
    for n in range(4)
]


def test_tensorboard_shows_every_number_once_even_after_a_kill(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is optional and not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for done, metrics in (
        (-1, METRICS[:3]),
        (1, METRICS[2:]),
    ):  # killed after step 2, its newest checkpoint is of step 1
        log = Log(tmp_path, config.Config(logger="tensorboard"), done)
        for m in metrics:
            log.step(m)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert set(board.Tags()["scalars"]) == {"reward/mean", "eval/mean@8"}
    assert [(e.step, e.value) for e in board.Scalars("reward/mean")] == [
        (n, n / 4) for n in range(4)
    ]


def test_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is optional and not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log = Log(tmp_path, config.Config(logger="wandb", gamma=0.25), -1)
    for m in METRICS:
        log.step(m)
    assert wandb.run.summary["reward/mean"] == 0.75 and wandb.run.config["gamma"] == 0.25
    assert wandb.run.id == (tmp_path / "wandb_id").read_text()
    wandb.finish()
    wandb.teardown()  # its server is a process of its own


@pytest.mark.parametrize("name", [name for name in loggers.LOGGERS if name != "none"])
def test_a_logger_that_is_not_installed_is_refused_before_any_work(name, monkeypatch):
    monkeypatch.setattr(config, "find_spec", lambda module: None)
    with pytest.raises(
        config.UserError, match=f"--logger {name}: is not installed; pip install {name}"
    ):
        config.parse(["--logger", name])
