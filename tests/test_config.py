"""Everything a user can get wrong is one line on stderr and status 2, with the remedy; nothing is
touched.
"""

import dataclasses
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT
from once import WORDS, Once
from transformers import AutoModelForCausalLM, GPT2Config

from nanomerci.loop import warmstart
from nanomerci.loop.model import load, tiny, token_logp
from nanomerci.runtime import config
from nanomerci.runtime.config import Config, UserError, parse
from nanomerci.sample import check_model, generate


@pytest.fixture
def command(capsys):
    """train.py in this process (starting torch costs seconds): -> status, what stood on stderr."""
    from nanomerci import train

    def go(*arguments):
        with pytest.raises(SystemExit) as stop:
            config.run_command(lambda: train.main(parse([*map(str, arguments)])))
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
        (["--lr", "fast"], "--lr fast: expected a number"),
        (["--steps", "3.5"], "--steps 3.5: expected a whole number"),
        (["--report", "no"], "--report no: expected True|False"),
        (["--kernels", "fused"], "--kernels fused: expected auto|torch|triton"),
        (["--steps"], "--steps: expected a value"),
        (["--out", "--steps", "3"], "--out: expected a value"),
        (["toy_sql", "toy_math"], "too many or too few arguments; see --help"),
        (["--algo", "ppo"], "--algo"),
        (["--bonus", "cfm"], "--bonus"),
        (["--group", "1"], "--group 1: a group of one has no standard deviation"),
        (["--minibatches", "3"], "--minibatches 3: does not divide --prompts 32"),
        (["--top_p", "0.9"], "--top_p 0.9: the trainer's log-probs cover the full vocabulary"),
        (["--top_k", "20"], "--top_k 20: the trainer's log-probs cover the full vocabulary"),
        (["--alpha", "1.5"], "--alpha 1.5: expected 0 or more, below 1"),
        (["--alpha", "1"], "--alpha 1.0: expected 0 or more, below 1"),
        (["--top", "0"], "--top 0.0: expected above 0, at most 1"),
        (["--kl_coef", "-1"], "--kl_coef -1"),
        (["--gamma", "inf"], "--gamma inf"),
        (["--gamma", "nan"], "--gamma nan"),
        (["--clip_high", "-0.5"], "--clip_high -0.5: expected 0 or more, or -1"),
        (["--save_every", "-1"], "--save_every -1"),
        (["--cfn_pretrain_epochs", "0"], "--cfn_pretrain_epochs 0"),
        (["--overlong_buffer", "48"], "--overlong_buffer 48: expected < --max_new_tokens"),
        (["--kl_coef", "0.1", "--cfn_features", "policy"], "--kl_coef needs the frozen reference"),
        (["--reward", "mine.py:reward"], "--reward mine.py:reward: needs problems"),
        (["--prompt_template", "Q: {q}"], "--prompt_template Q: {q}: lacks {question}"),
        (["--kernels", "triton", "--device", "cpu"], "--kernels triton: expected a GPU"),
        (["--temperature", "0"], "--temperature 0"),
        (["--temperature", "1e-300"], "expected 0.001 to 1000"),
        (["--lr", "nan"], "--lr nan"),
        (["--lr", "0"], "--lr 0.0: expected above 0"),
        (["--lr", "inf"], "--lr inf: expected above 0, at most 1000"),
        (["--beta2", "nan"], "--beta2 nan"),
        (["--grade_timeout", "inf"], "--grade_timeout inf: expected above 0, at most"),
        (["--threads", str(10**9)], "--threads 1000000000: expected 0 to 1024"),
        (["--graders", "0"], "--graders 0: expected 1 to 1024"),
        (["--seed", str(2**62)], "expected below 2^62 in size"),
        (["--steps", str(10**20)], "expected 1 or more, below 2^31"),
        (["--warmup", str(2**31)], "expected 0 or more, below 2^31"),
        (["--max_num_seqs", "0"], "--max_num_seqs 0: expected 1 or more"),
        (["--max_seq_len", "-1"], "--max_seq_len -1: expected 0 or more"),
        (["--max_prompt_tokens", "-5"], "--max_prompt_tokens -5"),
        (["--run", "0"], "--run 0"),
        (["--model", "a\0b"], "cannot be loaded"),
        (["--model", ""], "no weights there"),
        (["--task", "toy_sq"], "--task toy_sq: unknown; did you mean toy_sql?"),
        (["--device", "tpu"], "--device tpu"),
        (["--resume", "nowhere"], "no run found at 'nowhere' (expected a folder with config.yaml"),
        (["--task", "arithmetic"], "--task arithmetic provides no SFT demonstrations"),
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


SECTIONS = config.Config.__bases__[::-1]


@pytest.mark.parametrize("section", SECTIONS)
def test_help_has_every_option_with_meaning_and_default_in_its_section(section, capsys):
    """As a reader sees it: the sections in their order, and in each its options in theirs."""
    text = printed(capsys, "toy_math", "--help")
    assert text.startswith("usage: train.py")
    _, *rest = re.split(r"^(\w+) options: ", text, flags=re.M)
    parts = dict(zip(rest[::2], rest[1::2], strict=False))
    assert [*parts] == [one.__name__.lower() for one in SECTIONS]
    part = " ".join(parts[section.__name__.lower()].split())
    assert part.startswith(section.__doc__)
    part = part.removeprefix(section.__doc__)
    source, place = Path(config.__file__).read_text(), 0
    source = source.split(f"\nclass {section.__name__}:\n")[1].split("@")[0]
    defaults = Config(**config.read(config.RECIPES / "toy_math.yaml"))
    for field in dataclasses.fields(section):
        meaning = source.split(f"    {field.name}: ")[1].split('"""')[1]
        value = getattr(defaults, field.name)
        shown = "''" if value == "" else str(value)
        place = part.index(f"--{field.name} ", place)  # in the order of the source
        head, rest = part[place:].split(" ", 2)[1:]
        assert rest.startswith(f"{meaning} (default: {shown})"), field.name
        kind = config.TYPES[field.name]
        kinds = {int: "INT", float: "FLOAT", str: "STR", bool: "{True,False}"}
        assert head == kinds.get(kind, "{" + ",".join(getattr(kind, "__args__", ())) + "}")


def test_list_has_recipes_tasks_bonuses_and_objectives(capsys, tmp_path, monkeypatch):
    text = printed(capsys, "--list")
    for name in (*config.recipes(), "toy_math", "arithmetic", "reasoning_gym"):
        assert f"  {name}" in text
    assert "A real pretrained model" in text  # the recipe's first comment
    # a file there is listed by its docstring, and is not imported
    for folder in ("tasks", "bonuses"):
        (tmp_path / folder).mkdir()
    (tmp_path / "tasks/a.py").write_text('"""chess, go: board games\nfor two. More.\n\nx"""\n1/0')
    (tmp_path / "tasks/b.py").write_text('"""Helpers of the tasks: not one."""')
    (tmp_path / "tasks/c.py").write_text("")
    (tmp_path / "bonuses/mine.py").write_text('"""mine: first use of a token"""')
    (tmp_path / "objectives.py").write_text(
        'OBJECTIVES = {\n    "one": Row(\n        f,\n        ("k",),\n        about="the first",\n'
        '    ),\n    "two": Row(g),\n}\n'
    )
    monkeypatch.setattr(config, "PACKAGE", tmp_path)
    text = printed(capsys, "--list")
    lines = text.split("(--task")[1].splitlines()
    entries = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert ["chess, go", "board games for two"] in entries and "Helpers" not in text
    assert ["mine", "first use of a token"] in entries
    assert entries[-2:] == [["one", "the first"], ["two"]]


def test_the_shell_completes_options_and_values(capsys, tmp_path):
    """The script that tyro makes, in a real bash."""
    (tmp_path / "script").write_text(printed(capsys, "--tyro-print-completion", "bash"))
    ask = "source ./script; COMP_WORDS=(train.py %s); COMP_CWORD=%d; _tyro_train_py; "
    ask += "echo ${COMPREPLY[*]}"
    for words, completed in (
        ("--gam", "--gamma --gamma_decay"),
        ("--kernels ''", "auto torch triton"),
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


def test_every_option_has_a_docstring_of_one_line():
    """--help finds no other."""
    source = Path(config.__file__).read_text()
    for name in Config.__dataclass_fields__:
        after = source.split(f"    {name}: ", 1)[1].split("\n", 2)[1].strip()
        assert after.startswith('"""') and len(after) > 9 and after.endswith('."""'), name


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
        ("qqqq: 4", "unknown option qqqq."),
        ("group: many", "group: many: expected a whole number"),
        ("group: 4.5", "expected a whole number"),
        ("group: true", "expected a whole number"),
        ("[1, 2]", "mapping"),
        ("a: b: c", "cannot be read as YAML"),
        ("kernels: fused", "kernels: fused: expected auto|torch|triton"),
        ("report: 1", "expected True|False"),
        ("task: 3", "expected text"),
        ("lr: fast", "lr: fast: expected a number"),
        ("lr: true", "lr: True: expected a number"),
        ("lr: 1" + "0" * 400, "expected above 0, at most 1000"),
        ("group:\t4\n\tlr: 3", "cannot be read as YAML"),
        ("seed: 2020-01-01", "expected a whole number"),
        ("lr:", "lr: None: expected a number"),
        ("b: !!python/object/apply:os.abort []", "be read"),
    ],
)
def test_a_bad_recipe_is_refused(text, message, tmp_path):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
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
    with pytest.raises(UserError, match="cannot be combined with --lr; only --steps may change"):
        parse(["--resume", str(tmp_path), "--lr", "1e-3"])
    whole = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(whole[: len(whole) // 2].rsplit("\n", 1)[0] + "\n")
    with pytest.raises(UserError, match="config.yaml: lacks .*start a new one with --model"):
        parse(["--resume", str(tmp_path)])


def test_a_run_from_before_the_renames_is_one_clear_line(tmp_path):
    values = dataclasses.asdict(parse(["toy_sql"]))
    values["kl"] = values.pop("kl_coef")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError) as error:
        parse(["--resume", str(tmp_path)])
    said = str(error.value)
    assert said.startswith(f"{tmp_path}/config.yaml: unknown option kl;") and said.endswith(
        f"a run of another version cannot be resumed; start a new one with --model {tmp_path}"
    )
    assert len(said.splitlines()) == 1


def test_resume_auto_takes_what_the_run_chose_and_refuses_a_change(tmp_path, monkeypatch):
    begin = ["--out", str(tmp_path), "--resume", "auto", "--algo", "dapo"]
    assert parse(begin).resume == ""  # nothing is there
    (tmp_path / "checkpoints/step_000000").mkdir(parents=True)
    chosen = {"clip_high": 0.28, "max_gen_rounds": 10, "dtype": "float32", "threads": 7}
    config.write(dataclasses.replace(parse(begin[2:]), **chosen), tmp_path / "config.yaml")
    c = parse([*begin, "--steps", "500"])
    assert (c.resume, c.out, c.steps) == (str(tmp_path), str(tmp_path), 500)
    assert {name: getattr(c, name) for name in chosen} == chosen
    for change in (["--lr", "0.5"], ["--clip_high", "0.3"], ["--threads", "3"]):
        with pytest.raises(UserError, match=f"^{change[0]} .* options cannot change on resume"):
            parse([*begin, *change])
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert parse(["--out", str(tmp_path), "--algo", "dapo"]).resume == str(tmp_path)


@pytest.mark.parametrize(
    "words, recipe",
    [
        ([], "toy_sql"),
        (["--model", "M"], "toy_sql"),
        (["--task", "toy_math"], "toy_math"),
        (["--task=math", "--model", "M", "--train_data", "F"], "math"),
        (["--task", "sql", "--model", "M", "--train_data", "F"], "sql"),
        (["--task", "reasoning_gym:chess", "--model", "M"], "math"),
        (["--task", "arithmetic", "--model", "M"], "math"),
        (["--reward", "f.py:g", "--model", "M", "--train_data", "F"], "math"),
    ],
)
def test_without_a_recipe_the_defaults_fit_the_task_and_one_line_says_so(words, recipe, capsys):
    c = config.early(words)
    said = capsys.readouterr().err
    assert said == f"no recipe given: defaults of {recipe} (see --list)\n"
    named = parse([recipe, *words])
    assert c == named and c.out == f"runs/{recipe}-seed0"
    config.early([recipe, *words])
    assert capsys.readouterr().err == ""
    if recipe in ("math", "sql"):  # what a pretrained model bears
        assert c.lr <= 1e-6 and c.max_new_tokens >= 1000 and c.run == 3


@pytest.mark.parametrize("name", ["math", "sql"])
def test_a_value_of_a_generic_recipe_is_that_of_the_paper_or_says_ours(name):
    paper = {"math": "qwen2.5_math_grpo_cfn", "sql": "llama3_sql_grpo_cfn"}[name]
    of_paper = config.read(config.RECIPES / f"{paper}.yaml")
    lines = (config.RECIPES / f"{name}.yaml").read_text().splitlines()
    values = config.read(config.RECIPES / f"{name}.yaml")
    for line in lines:
        option = line.partition(":")[0]
        if option in values and option != "task":
            assert ("[ours]" in line) != ("[qwen2.5]" in line or "[llama3]" in line), line
            assert "[ours]" in line or values[option] == of_paper[option], line


def test_config_yaml_holds_the_number_of_threads(monkeypatch, tmp_path):
    """And without torch: cores this process may use, divided among the ranks of this machine."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    assert parse([]).threads == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "5")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # torchrun's own
    assert parse([]).threads == 2 and parse(["--threads", "3"]).threads == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "4")  # the user's
    config.write(parse([]), tmp_path / "config.yaml")
    assert config.read(tmp_path / "config.yaml")["threads"] == 4


def test_what_depends_on_the_objective_or_the_device_is_left_open():
    c = parse(["--algo", "mine", "--bonus", "my/file.py:Mine"])
    assert (c.algo, c.bonus) == ("mine", "my/file.py:Mine")
    assert (c.clip_high, c.max_gen_rounds, c.dtype) == (-1, 0, "auto")


def test_sections_stand_alone_and_a_config_is_each_of_them():
    """As an integration takes them: the bonus's options beside options of its own."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Mine(config.Exploration, config.Counter):
        beta: float = 0.0

    assert Mine(top=0.5, beta=1.0).coins == 20 and not hasattr(Mine(), "lr")
    with pytest.raises(UserError, match="--top 2: expected above 0, at most 1"):
        config.check_ranges(Mine(top=2))
    c = Config(steps=2)
    assert all(isinstance(c, section) for section in SECTIONS)
    assert [f.name for f in dataclasses.fields(c)] == [
        f.name for section in SECTIONS for f in dataclasses.fields(section)
    ]
    with pytest.raises(TypeError):
        Config("toy_sql")
    with pytest.raises(UserError, match="--steps 0"):
        config.check(Config(steps=0))


def test_yes_no_options_need_no_value():
    assert parse(["--dry_run"]).dry_run and parse(["--dry-run", "--steps", "3"]).steps == 3
    assert parse(["--lr_decay", "False"]).lr_decay is False
    assert parse(["--lr_decay=False", "--dry_run"]).lr_decay is False


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
        check_model(load(tmp_path / "model")[0], "model")
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


class Shown(Once):
    words = WORDS

    def demonstration(self, rng):
        return "a b", "c"


def test_a_warm_start_is_made_once(tmp_path, monkeypatch):
    """Its key does not hold the vocabulary in the order of a dict, another each time."""
    monkeypatch.setenv("NANOMERCI_CACHE", str(tmp_path))
    monkeypatch.setattr(warmstart, "STEPS", 1)
    for _ in range(3):
        warmstart.tiny_policy(Shown())
    assert len(list(tmp_path.glob("warmstart-*"))) == 1


def test_a_disk_that_fills_up_while_the_cache_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOMERCI_CACHE", str(tmp_path))
    monkeypatch.setattr(warmstart, "STEPS", 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (10_000, hard)
    )  # no file may grow beyond it: the nearest thing to a full disk
    try:
        with pytest.raises(UserError, match="the cache .* cannot be written .* make room"):
            warmstart.tiny_policy(Shown())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())  # nothing half-written is taken for the cache next time
    assert warmstart.tiny_policy(Shown())[0].config.hidden_size == 96
