"""Everything a user can get wrong is one line on stderr and status 2, with the remedy; nothing is
touched.
"""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from once import WORDS, Once
from transformers import AutoModelForCausalLM, BertConfig, GPT2Config, OPTConfig

from nanomerci import tasks
from nanomerci.loop import warmstart
from nanomerci.loop.model import load, tiny, token_logp
from nanomerci.runtime import config
from nanomerci.runtime.config import Config, UserError, parse
from nanomerci.sample import generate


@pytest.fixture
def command(monkeypatch, capsys):
    """train.py in this process (starting torch costs seconds): -> status, what stood on stderr."""
    from nanomerci import train

    def go(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            config.run_command(train.main)
        return stop.value.code, capsys.readouterr().err.strip()

    return go


def test_as_a_real_process_too(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "--grup", "4"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown option --grup; did you mean --group? See --help\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--grup", "4"], "unknown option --grup; did you mean --group?"),
        (["toy_sqll"], "unknown recipe toy_sqll; did you mean toy_sql?"),
        (["--lr", "fast"], "--lr"),
        (["--algo", "ppo"], "--algo"),
        (["--group", "1"], "--group 1: a group of one has no standard deviation"),
        (["--minibatches", "3"], "--minibatches 3: does not divide --prompts 32"),
        (["--top_p", "0.9"], "--top_p 0.9: the trainer's log-probs cover the full vocabulary"),
        (["--top_k", "20"], "--top_k 20: the trainer's log-probs cover the full vocabulary"),
        (["--alpha", "1.5"], "--alpha 1.5"),
        (["--kl_coef", "-1"], "--kl_coef -1"),
        (["--gamma", "inf"], "--gamma inf"),
        (["--save_every", "-1"], "--save_every -1"),
        (["--cfn_pretrain_epochs", "0"], "--cfn_pretrain_epochs 0"),
        (["--kl_coef", "0.1", "--cfn_features", "policy"], "--kl_coef needs the frozen trunk"),
        (["--kernels", "triton", "--device", "cpu"], "--kernels triton: wants a GPU"),
        (["--temperature", "0"], "--temperature 0"),
        (["--temperature", "1e-300"], "wanted 0.001 to 1000"),
        (["--lr", "nan"], "--lr nan"),
        (["--lr", "inf"], "--lr inf: wanted at most 1000"),
        (["--beta2", "nan"], "--beta2 nan"),
        (["--grade_timeout", "inf"], "--grade_timeout inf: wanted at most"),
        (["--threads", str(10**9)], "--threads 1000000000: wanted at most 1024"),
        (["--steps", str(10**20)], "is too large; wanted less than 2^31"),
        (["--max_num_seqs", "0"], "--max_num_seqs 0: wanted at least 1"),
        (["--max_seq_len", "-1"], "--max_seq_len -1: wanted 0 or more"),
        (["--max_prompt_tokens", "-5"], "--max_prompt_tokens -5"),
        (["--run", "0"], "--run 0"),
        (["--model", "a\0b"], "cannot be loaded"),
        (["--model", ""], "no weights there"),
        (["--task", "toy_sq"], "--task toy_sq: unknown; did you mean toy_sql?"),
        (["--device", "tpu"], "--device tpu"),
        (["--resume", "nowhere"], "nowhere/config.yaml"),
        (["--task", "arithmetic"], "--model tiny: --task arithmetic has no demonstrations"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, tmp_path, command):
    status, error = command(
        *arguments, *(() if "--resume" in arguments else ("--out", tmp_path / "run"))
    )
    assert status == 2 and message in error
    assert len(error.splitlines()) == 1 and error.startswith("error: ")
    assert not (tmp_path / "run").exists()


def printed(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        parse([*words])
    assert not stop.value.code
    return capsys.readouterr().out


def test_help_has_every_option_with_meaning_and_default_in_its_section(capsys):
    """As a reader sees it: the sections of the source in their order, and in each its options in
    theirs.
    """
    text = printed(capsys, "toy_sql", "--help")
    source = Path(config.__file__).read_text().split("class Config:")[1].split("    @property")[0]
    defaults = Config(**config.read(config.RECIPES / "toy_sql.yaml"))
    for section in source.split("    # ---- ")[1:]:
        title, fields = section.split("\n", 1)
        assert f"\n{title}\n" in text
        part = " ".join(text.split(f"\n{title}\n")[1].split("\n\n")[0].split())
        assert len(fields.split('"""\n')) > 2
        for field in fields.strip().split('"""\n'):
            name, meaning = field.strip().split(":")[0], " ".join(field.split('"""')[1].split())
            value = getattr(defaults, name)
            head, rest = part.split(f"--{name} ", 1)[1].split(" ", 1)
            assert rest.startswith(
                f"{meaning} (default {value if value != '' else chr(34) * 2})"
            ), name
            assert all(
                choice in head.split("|")
                for choice in getattr(Config.__dataclass_fields__[name].type, "__args__", ())
            ), name


def test_list_has_recipes_tasks_and_bonuses(capsys):
    text = printed(capsys, "--list")
    for name in (
        *config.recipes(),
        *tasks.BUILT_IN,
        *Config.__dataclass_fields__["bonus"].type.__args__,
        "math, sql",
        "reasoning_gym:",
    ):
        assert name in text
    assert "A real pretrained model" in text  # the recipe's first comment


def test_the_shell_completes_options_and_values(capsys, tmp_path):
    """The script that tyro makes, in a real bash."""
    (tmp_path / "script").write_text(printed(capsys, "--tyro-print-completion", "bash"))
    ask = "source ./script; COMP_WORDS=(train.py %s); COMP_CWORD=%d; _tyro_train_py; echo ${COMPREPLY[*]}"
    for words, completed in (
        ("--gam", "--gamma --gamma_decay"),
        ("--algo ''", "grpo dapo dr_grpo"),
        ("toy_sql --sav", "--save_every"),
    ):
        done = subprocess.run(
            ["bash", "-c", ask % (words, len(words.split()))],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert (done.stdout, done.stderr) == (completed + "\n", "")


def test_what_needs_no_torch_does_without():
    """--help, --list, mistakes: answered before torch is imported, which takes seconds."""
    code = """if True:
        import runpy, sys
        sys.argv = sys.argv[1:]
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        finally:
            assert "torch" not in sys.modules, "torch was loaded\\n" """
    for status, *words in (
        (0, "train.py", "--help"),
        (0, "train.py", "--list"),
        (2, "train.py", "--lr", "fast"),
        (0, "sample.py", "-h"),
        (2, "sample.py", "x", "-n", "0"),
        (2, "train.py", "--logger", "wandb", "--alpha", "2"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == status, done.stderr
        assert (
            (done.stdout[:6] == "usage:" or done.stdout[:7] == "Recipes")
            if status == 0
            else done.stderr.count("\n") == 1
        )


def test_every_option_has_a_docstring():
    import tyro  # noqa: F401  it reads them from the source, so do we

    source = Path(config.__file__).read_text()
    for name in Config.__dataclass_fields__:
        after = source.split(f"    {name}: ", 1)[1].split("\n", 2)[1].strip()
        assert after.startswith('"""'), name


@pytest.mark.parametrize("name", config.recipes())
def test_every_recipe_parses(name):
    assert parse([name]).out == f"runs/{name}-seed0"


def test_command_line_beats_recipe_beats_default(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("group: 4\nlr: 1e-4\nalgo: dapo\n")
    c = parse([str(recipe), "--group", "6", "--seed=3"])
    assert (c.group, c.lr, c.algo, c.coins, c.out) == (6, 1e-4, "dapo", 20, "runs/mine-seed3")


@pytest.mark.parametrize(
    "text, message",
    [
        ("grup: 4", "unknown option grup; did you mean group?"),
        ("group: many", "'many' is not a int"),
        ("[1, 2]", "mapping"),
        ("a: b: c", "cannot be read as YAML"),
        ("algo: ppo", "is not a grpo|dapo|dr_grpo"),
        ("lr: fast", "is not a float"),
        ("lr: true", "True is not a float"),
        ("lr: 1" + "0" * 400, "is not a float"),
        ("group:\t4\n\tlr: 3", "cannot be read as YAML"),
        ("seed: 2020-01-01", "is not a int"),
        ("lr:", "None is not a float"),
        ("b: !!python/object/apply:os.abort []", "be read"),
    ],
)
def test_a_bad_recipe_is_refused(text, message, tmp_path):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=message.replace("|", r"\|")):
        parse([str(tmp_path / "bad.yaml")])


def test_a_model_folder_without_weights_is_refused(tmp_path):
    model, tokenizer = tiny(WORDS, width=16, layers=1, heads=2)
    tokenizer.save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no weights there"):
        load(tmp_path)
    with pytest.raises(UserError, match="cannot be loaded"):
        load(tmp_path / "not-there")


def test_a_tokenizer_without_eos_is_refused(tmp_path):
    model, tokenizer = tiny(WORDS, width=16, layers=1, heads=2)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="no end-of-sequence token"):
        load(tmp_path)


def test_a_prompt_longer_than_the_context_is_refused(tmp_path, command):
    model, tokenizer = tiny(WORDS, width=16, layers=1, heads=2)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    status, error = command(
        "--model", tmp_path / "model", "--max_new_tokens", 300, "--out", tmp_path / "run"
    )
    assert (
        status == 2
        and "exceeds the model's context of 256" in error
        and len(error.splitlines()) == 1
    )


def test_resume_keeps_the_run_as_it_was(tmp_path):
    config.write(parse(["--group", "4", "--seed", "5"]), tmp_path / "config.yaml")
    assert (
        parse(["--resume", str(tmp_path)]).group == 4
        and parse(["--resume", str(tmp_path), "--steps", "9"]).steps == 9
    )
    with pytest.raises(UserError, match="cannot change --lr"):
        parse(["--resume", str(tmp_path), "--lr", "1e-3"])
    whole = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(whole[: len(whole) // 2].rsplit("\n", 1)[0] + "\n")
    with pytest.raises(UserError, match="it is not the configuration of a run"):
        parse(["--resume", str(tmp_path)])


def damage(folder, kind):
    """What can be wrong with a model folder."""
    weights, settings = folder / "model.safetensors", folder / "config.json"
    if kind == "cut":
        weights.write_bytes(weights.read_bytes()[:2000])
    elif kind == "other shape":
        settings.write_text(settings.read_text().replace('"hidden_size": 32', '"hidden_size": 64'))
    elif kind == "broken config":
        settings.write_text("{")
    elif kind == "no tokenizer":
        for path in folder.glob("tokenizer*"):
            path.unlink()
    elif kind == "broken template":
        (folder / "chat_template.jinja").write_text("{% for %}")
    else:
        model = AutoModelForCausalLM.from_pretrained(folder)
        if kind == "not finite":
            model.model.embed_tokens.weight.data[3] = torch.nan
        else:
            model.resize_token_embeddings(4)
        model.save_pretrained(folder)


@pytest.mark.parametrize(
    "kind, message",
    [
        ("cut", "cannot be loaded"),
        ("other shape", "cannot be loaded"),
        ("broken config", "cannot be loaded"),
        ("no tokenizer", "cannot be loaded"),
        ("broken template", r"cannot be loaded \(TemplateSyntaxError"),
        ("not finite", "not finite; some of its weights are damaged"),
        ("fewer rows", "has 12 tokens, the model only 4"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_model_folder_is_refused(kind, message, small_model, tmp_path):
    shutil.copytree(small_model(WORDS), tmp_path / "model")
    damage(tmp_path / "model", kind)
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path / "model")
    assert len(str(error.value).splitlines()) == 1


def save(config_of, folder, tokenizer):
    for part in (AutoModelForCausalLM.from_config(config_of), tokenizer):
        part.save_pretrained(folder)


def test_gpt2_whose_config_knows_no_grouped_heads_samples_and_trains_alike(small_model, tmp_path):
    tokenizer = load(small_model(WORDS))[1]
    save(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=64,
            initializer_range=0.5,
        ),
        tmp_path,
        tokenizer,
    )
    model, _ = load(tmp_path)
    roll = generate(model, [[4, 5, 6], [7]], 3, max_new_tokens=5, eos_id=1)
    assert torch.allclose(
        token_logp(model, roll.tokens_BT, roll.mask_BT)[0], roll.logp_BT, atol=1e-4
    )


@pytest.mark.parametrize(
    "family, shape, message",
    [
        (
            OPTConfig,
            dict(ffn_dim=32, word_embed_proj_dim=16),
            "cannot be sampled with our key-value cache|change with our cache",
        ),
        (BertConfig, dict(is_decoder=True), "are not head|cannot be sampled"),
    ],
)
def test_a_model_that_does_more_than_we_compute_is_refused(
    family, shape, message, small_model, tmp_path
):
    tokenizer = load(small_model(WORDS))[1]
    save(
        family(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            **shape,
        ),
        tmp_path,
        tokenizer,
    )
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path, command, monkeypatch):
    (tmp_path / "file").write_text("mine")
    for out in (
        "/proc/run",
        "a\0b",
        tmp_path / "file",
        tmp_path / "file/run",
        tmp_path / ("x" * 300),
    ):
        status, error = command("--out", out)
        assert (
            status == 2
            and f"--out {out}: cannot be written" in error
            and len(error.splitlines()) == 1
        )
    monkeypatch.setenv("NANOMERCI_CACHE", str(tmp_path / "file/cache"))
    status, error = command("--out", tmp_path / "run")
    assert (
        status == 2
        and "the cache" in error
        and "set NANOMERCI_CACHE" in error
        and len(error.splitlines()) == 1
    )
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (
        tmp_path / "file"
    ).read_text() == "mine"


def test_out_of_memory_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        config.run_command(lambda: torch.empty(1 << 60, dtype=torch.uint8))
    assert stop.value.code == 2 and capsys.readouterr().err.startswith("error: out of memory")
    with pytest.raises(RuntimeError, match="a bug"):
        config.run_command(lambda: (_ for _ in ()).throw(RuntimeError("a bug")))


def test_a_disk_that_fills_up_while_the_cache_is_written(tmp_path, monkeypatch):
    class Task(Once):
        words = WORDS
        demonstration = staticmethod(lambda rng: ("a b", "c"))

    monkeypatch.setenv("NANOMERCI_CACHE", str(tmp_path))
    monkeypatch.setattr(warmstart, "STEPS", 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (10_000, hard)
    )  # no file may grow beyond it: the nearest thing to a full disk
    try:
        with pytest.raises(UserError, match="the cache .* cannot be written .* make room"):
            warmstart.tiny_policy(Task())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())  # nothing half-written is taken for the cache next time
    assert warmstart.tiny_policy(Task())[0].config.hidden_size == 96
