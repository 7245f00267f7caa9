"""Options and commands. Options are sections of frozen dataclasses; a recipe overrides their
defaults, the command line both: two ways to write {option: value}. Nothing here imports torch.

Numbers of the MERCI paper are marked (MERCI), of DAPO (DAPO); a choice of ours where the paper is
silent, (ours).
"""

import ast
import difflib
import errno
import os
import re
import sys
import textwrap
from collections import ChainMap
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from itertools import starmap
from math import inf
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args, get_type_hints

PACKAGE = Path(__file__).parent.parent
RECIPES = PACKAGE / "recipes"


class UserError(Exception):
    """Something a user can put right: the command prints one line and ends with status 2."""


class Allowed(NamedTuple):
    """The values an option takes, in words and as a test; part of the field's type."""

    words: str
    test: Callable


Count = Annotated[int, Allowed("1 or more, below 2^31", lambda x: 1 <= x < 2**31)]
Size = Annotated[int, Allowed("0 or more, below 2^31", lambda x: 0 <= x < 2**31)]
Workers = Annotated[int, Allowed("1 to 1024", lambda x: 1 <= x <= 1024)]
Threads = Annotated[int, Allowed("0 to 1024", lambda x: 0 <= x <= 1024)]
Seed = Annotated[int, Allowed("below 2^62 in size", lambda x: abs(x) < 2**62)]
Weight = Annotated[float, Allowed("0 or more", lambda x: 0 <= x < inf)]
Rate = Annotated[float, Allowed("above 0, at most 1000", lambda x: 0 < x <= 1e3)]
Seconds = Annotated[float, Allowed("above 0, at most 1e6", lambda x: 0 < x <= 1e6)]
Fraction = Annotated[float, Allowed("0 or more, below 1", lambda x: 0 <= x < 1)]
Share = Annotated[float, Allowed("above 0, at most 1", lambda x: 0 < x <= 1)]
Norm = Annotated[float, Allowed("above 0", lambda x: x > 0)]
Ratio = Annotated[float, Allowed("0 or more, or -1", lambda x: 0 <= x < inf or x == -1)]
Temperature = Annotated[float, Allowed("0.001 to 1000", lambda x: 1e-3 <= x <= 1e3)]


# ---- the options: a section's docstring is its heading in --help, a field's its help, on one line
@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained, and on what"""

    task: str = "toy_sql"
    """Task, one of --list; math and sql need --train_data."""
    model: str = "tiny"
    """Policy: Hugging Face folder or hub id, run folder, or `tiny` (built and SFT-trained here)."""
    sft_seed: Seed = 0
    """Seed of the tiny model's initialisation and SFT warm start."""
    rare_share: Share = 0.02
    """toy_sql: share of its demonstrations that use the rare, robust idiom."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Data and rewards of --task math and sql, or of your own --reward"""

    train_data: str = ""
    """Known set (dapo_math_17k, math, gsm8k), hub id, file, folder; sql: Spider or BIRD folder."""
    test_data: str = ""
    """Held-out problems, named like --train_data; default: a tenth of that, or its dev split."""
    data_folder: str = ""
    """Folder in which the names of these two are looked up, for machines without network."""
    columns: str = ""
    """Columns of --train_data, QUESTION,ANSWER, where they are not recognised."""
    reward: str = ""
    """FILE.py:FUNCTION(prompt, response, record of the data) -> reward, 0 to 1; 1 is correct."""
    prompt_template: str = ""
    """Prompt in which {question} is replaced; default: the task's own wording."""
    strict_data: bool = False
    """Stop at the first bad record; default: bad records are left out, counted and named."""
    sql_match: Literal["bird", "spider"] = "bird"
    """Results agree: bird = same set of rows; spider = same counts too, columns in any order."""
    partial_credit: bool = False
    """sql: an incorrect result earns 0.8 c^2 / (gold columns x its columns), c of them correct."""
    perturbed_copies: Size = 0
    """sql: perturbed copies of the database on which query and gold query must also agree."""
    max_prompt_tokens: Size = 0
    """Problems with longer prompts are left out; 0 = no limit."""
    grade_timeout: Seconds = 10.0
    """Seconds until the grading of a response is stopped; a SQL query may take 0.45 of them."""
    graders: Workers = 2
    """Grading processes per rank."""

    @property
    def query_seconds(self):
        """The gold query and the response's must both fit into the timeout."""
        return 0.45 * self.grade_timeout


@dataclass(frozen=True, kw_only=True)
class Step:
    """A training step and its rollouts"""

    steps: Count = 60
    """Training steps; each samples one batch and learns from it."""
    budget: Size = 0
    """Stop after this many prompts even before --steps; 0 = no limit (dapo takes more per step)."""
    prompts: Count = 16
    """P, prompts per step, over all ranks."""
    group: Count = 8
    """G, responses per prompt (MERCI: 8)."""
    minibatches: Count = 1
    """Optimiser updates per step, each on an equal share of the batch's prompts."""
    max_gen_rounds: Size = 0
    """Rounds of dynamic sampling per step; 1 = off, 0 = the objective's own: 1 (dapo: 10)."""
    max_new_tokens: Count = 48
    """Maximum response length in tokens."""
    temperature: Temperature = 1.0
    """Sampling temperature in training; the trainer's log-probs use the same."""
    top_p: float = 1.0
    """Nucleus sampling; only 1 = off, as the trainer's log-probs cover the full vocabulary."""
    top_k: int = 0
    """Top-k sampling; only 0 = off, for the same reason."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Objective and optimiser"""

    algo: str = "grpo"
    """Objective (advantage and loss): one of --list, or your own FILE.py:NAME."""
    pass_k: Count = 4
    """k of --algo passk; at most --group (4: ours)."""
    lr: Rate = 1e-6
    """Learning rate of AdamW."""
    warmup: Size = 0
    """Steps of linear learning-rate warmup from 0."""
    lr_decay: bool = False
    """Decay the learning rate linearly, to 0 after the last step."""
    beta2: Fraction = 0.95
    """Second-moment decay of AdamW (the first is 0.9)."""
    weight_decay: Weight = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: Norm = 1.0
    """Gradients are clipped to this norm."""
    clip_low: Weight = 0.2
    """The ratio pi / pi_old is clipped below 1 - clip_low."""
    clip_high: Ratio = -1.0
    """... and above 1 + clip_high; -1 = the objective's own: 0.2 (dapo: 0.28, "clip-higher")."""
    kl_coef: Weight = 0.0
    """Weight of the k3 KL to the reference model, the initial policy (DeepSeekMath: 0.04)."""
    old_logp: Literal["sampler", "trainer"] = "trainer"
    """Old log-probs if minibatches > 1: the trainer's (an extra forward) or the sampler's."""
    overlong_buffer: Size = 0
    """Soft length penalty over this many tokens before max_new_tokens, 0 = off (DAPO: 4096)."""


@dataclass(frozen=True, kw_only=True)
class Exploration:
    """Exploration bonus (MERCI)"""

    bonus: str = "cfn"
    """One of --list, or your own FILE.py:CLASS; cfn is MERCI's, none turns it off."""
    gamma: Weight = 0.5
    """Weight of the exploration advantage at step 0 (ours); 0 = no bonus, bit for bit."""
    gamma_decay: Size = 200
    """Steps of a half cosine over which gamma decays to a tenth (MERCI: 200)."""
    alpha: Fraction = 0.5
    """Cap: the bonus changes an advantage by at most alpha times its size, not its sign (ours)."""
    top: Share = 0.3
    """Percentile filter: share of a response's tokens that is kept, the most novel (MERCI: 0.3)."""
    run: Count = 3
    """Coherence filter: minimum length of a run of consecutive kept tokens (MERCI's figure: 3)."""
    noise_filter: bool = True
    """Noise filter: drop tokens that the task declares to be noise."""
    bonus_form: Literal["variance", "deviation", "sum"] = "variance"
    """sqrt(mean 1/n) (MERCI), mean sqrt(1/n) (its ablation), sqrt(sum 1/n) (its proposition 1)."""
    credit: Literal["response", "token"] = "response"
    """One bonus for all tokens of a response (MERCI), or per token its uncertainty-to-go (UBE)."""
    bonus_on_zero_variance: bool = False
    """Groups whose rewards are all equal get a bonus too, at most alpha (MERCI: no)."""


@dataclass(frozen=True, kw_only=True)
class Counter:
    """Counter of the bonus: the Coin Flipping Network (CFN)"""

    coins: Count = 20
    """C, coins per visit (MERCI, CFN: 20)."""
    cfn_features: Literal["frozen", "policy"] = "frozen"
    """Model whose hidden states are counted: a frozen copy of the initial policy, or the policy."""
    cfn_hidden: Size = 256
    """Width of the head's hidden layer (ours)."""
    cfn_prior: bool = True
    """Frozen random prior, so that an unseen state reads 1/n near 1 (CFN)."""
    cfn_lr: Rate = 1e-3
    """Learning rate of the head (ours)."""
    cfn_batch: Count = 512
    """Visits per update of the head."""
    cfn_pretrain: Count = 4
    """Pre-training (MERCI), in batches of P x G responses of the initial policy (ours)."""
    cfn_pretrain_epochs: Count = 3
    """Epochs of pre-training."""
    cfn_replay: Count = 65536
    """Size of the replay buffer in visits, a uniform sample of all."""
    cfn_rehearse: Size = 1024
    """Replayed visits per step, in addition to the new ones."""
    oracle_counts: bool = False
    """Keep exact prefix counts too and log how well 1/n is calibrated (oracle/*); costs memory."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Evaluation on held-out problems"""

    eval_every: Size = 20
    """Steps between evaluations; 0 = only before the first and after the last step."""
    eval_problems: Count = 200
    """Held-out problems per evaluation."""
    eval_k: Count = 16
    """Responses per problem."""
    eval_split: Literal["test", "tune"] = "test"
    """Held-out problems: the test set, or, to choose settings, as many training problems."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The run: folders, checkpoints, hardware"""

    seed: Seed = 0
    """Seed of everything random in the run."""
    out: str = ""
    """Run folder (default runs/RECIPE-seedN)."""
    resume: str = ""
    """Run folder to resume, from its newest checkpoint; auto = --out if it holds a run."""
    save_every: Size = 20
    """Steps between checkpoints; 0 = only after the last step."""
    keep_checkpoints: Count = 2
    """Newest checkpoints to keep."""
    report: bool = True
    """Draw report.html during training, and the curves at every checkpoint."""
    logger: Literal["none", "tensorboard", "wandb"] = "none"
    """Also send metrics to RUN/tensorboard or Weights & Biases; metrics.jsonl always gets them."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto = a GPU if there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of forward and backward (weights: float32); auto = bfloat16 where it is fast."""
    kernels: Literal["auto", "torch", "triton"] = "auto"
    """Log-probs and CFN scores by fused Triton kernels or plain torch; auto = Triton on a GPU."""
    max_seq_len: Size = 0
    """Maximum sequence length in tokens; 0 = max_position_embeddings of the model's config."""
    micro_batch_tokens: Count = 16384
    """Tokens per micro-batch, padding included; bounds the memory of an update."""
    max_num_seqs: Count = 512
    """Responses sampled at once per rank; bounds the KV cache."""
    gradient_checkpointing: bool = False
    """Recompute activations in backward: a third more compute, a fraction of the memory."""
    shard: Literal["none", "fsdp"] = "none"
    """Ranks are replicas, or (fsdp) hold slices of the training state and a copy to sample from."""
    rank_timeout: Seconds = 1800.0
    """Collective timeout in seconds."""
    threads: Threads = 0
    """CPU threads per rank; 0 = usable cores / ranks of this machine, recorded in config.yaml."""
    dry_run: bool = False
    """Only print what the run would do: prompts, tokens, memory, seconds per step; needs no GPU."""

    @property
    def backend(self):
        """For the kernels: None lets them choose by device."""
        return None if self.kernels == "auto" else self.kernels


@dataclass(frozen=True, kw_only=True)
class Config(Run, Evaluation, Counter, Exploration, Loss, Step, Data, Task):
    """All options, flat. Bases in reverse, so that the fields stand in the order above."""


TYPES = get_type_hints(Config)  # without the allowed values
ABOUT = """python train.py [RECIPE] [--option value ...], RECIPE: one of --list, or a YAML file.
Defaults below are those of the recipe, or of toy_sql."""


# ---- what is wrong with them
def check(c):
    """Everything that can be known to be wrong before any work is done. -> c"""
    check_ranges(c)
    least = 1 if c.bonus == "none" and c.algo == "dr_grpo" else 2
    frozen, installed = c.cfn_features == "frozen", c.logger == "none" or find_spec(c.logger)
    slot, whole = "{question}", c.credit == "response"
    full = "the trainer's log-probs cover the full vocabulary, so sampling must too; expected"
    rules = (
        ("top_p", c.top_p == 1, f"{full} 1.0"),
        ("top_k", c.top_k == 0, f"{full} 0"),
        ("group", c.group >= least, "a group of one has no standard deviation; expected 2 or more"),
        ("pass_k", c.algo != "passk" or c.pass_k <= c.group, f"expected at most --group {c.group}"),
        ("minibatches", c.prompts % c.minibatches == 0, f"does not divide --prompts {c.prompts}"),
        ("overlong_buffer", c.overlong_buffer < c.max_new_tokens, "expected < --max_new_tokens"),
        ("reward", c.train_data or not c.reward, "needs problems; give --train_data too"),
        ("prompt_template", slot in (c.prompt_template or slot), f"lacks {slot}"),
        ("credit", whole or c.bonus != "entropy", "entropy is per token anyway"),
        ("credit", whole or c.bonus not in ("outcome", "mistakes"), f"{c.bonus} counts answers"),
        ("cfn_features", frozen or not c.kl_coef, "--kl_coef needs the frozen reference model"),
        ("logger", installed, f"is not installed; pip install {c.logger}, or --logger none"),
    )
    for name, right, words in rules:
        if not right:
            raise UserError(f"--{name} {getattr(c, name)}: {words}")
    return c


def check_ranges(options):
    """Every field of a dataclass against the range in its type."""
    for f in fields(options):
        value = getattr(options, f.name)
        for allowed in getattr(f.type, "__metadata__", ()):
            if isinstance(allowed, Allowed) and not allowed.test(value):
                raise UserError(f"{dashed(f.name)} {value}: expected {allowed.words}")


def dashed(name):
    return f"-{name}" if len(name) == 1 else f"--{name}"


def closest(word, words):
    found = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else "."


# ---- from words and YAML to {option: value}
def choices(kind):
    return ("True", "False") if kind is bool else get_args(kind)


def typed(where, kind, value):
    """A word, or a value of YAML, as the option's type."""
    text = str(value)
    if kind in (str, Path) and isinstance(value, str):
        return kind(value)
    if text in choices(kind):
        return text == "True" if kind is bool else text
    if kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    expected = {int: "a whole number", float: "a number", str: "text", Path: "text"}
    expected = expected.get(kind) or "|".join(choices(kind))
    raise UserError(f"{where} {text:.40}: expected {expected}")


def option_name(word):
    return word.lstrip("-").partition("=")[0].replace("-", "_")


def is_option(word):
    return re.match("--?[a-zA-Z]|--$", word)


def command_line(defaults, argv, prog, about, also=(), places=()):
    """The words of a command -> {option: value} for the dataclass that defaults is of, and the
    words for the dataclasses in `also`. Words that belong to no option are the values of `places`,
    in order; a yes-no option without a value means True.
    """
    if {"-h", "--help"} & set(argv):
        show_help(defaults, " ".join([prog, *map(str.upper, places)]), about)
    ours = get_type_hints(type(defaults))
    types = ChainMap(ours, *map(get_type_hints, also))
    found, places, words = {}, list(places), list(argv)
    while words:
        word = words.pop(0)
        option, equals, value = word.partition("=")
        name, after = option_name(option), words[0] if words else "--"
        if not is_option(word):
            if not places:
                whole = " ".join([prog, *argv])
                raise UserError(f"{whole}: too many or too few arguments; see --help")
            name, value = places.pop(0), word
        elif name not in types:
            near = closest(option, map(dashed, types))
            raise UserError(f"unknown option {option}{near} See --help")
        elif not equals:
            place_next = places and after not in ("True", "False")
            bare = types[name] is bool and (is_option(after) or place_next)
            if after.startswith("--") and not bare:
                raise UserError(f"{option}: expected a value; see --help")
            value = "True" if bare else words.pop(0)
        if types[name] is list:
            found.setdefault(name, []).append(value)
        else:
            found[name] = typed(option, types[name], value)
    theirs = [name for name in found if name not in ours]
    return found, [f"--{name}={found.pop(name)}" for name in theirs]


def show_help(defaults, usage, about):
    """Print every option in its section, with the docstring below it and its default."""
    cls, types = type(defaults), get_type_hints(type(defaults))
    source = Path(sys.modules[cls.__module__].__file__).read_text()
    meanings = dict(re.findall(r'^    (\w+): .*\n    """(.*)"""$', source, re.M))
    print(f"usage: {usage} [--option value ...]\n\n{about.strip()}")
    for section in cls.__bases__[::-1] if len(cls.__bases__) > 1 else [cls]:
        print(f"\n{section.__name__.lower()} options: {section.__doc__}")
        for f in fields(section):
            kind, value = types[f.name], getattr(defaults, f.name)
            values = ",".join(choices(kind))
            values = f"{{{values}}}" if values else kind.__name__.upper()
            default = f"(default: {value or repr(value)})"
            print(entry(f"{dashed(f.name)} {values}", f"{meanings[f.name]} {default}"))
    sys.exit(0)


def entry(names, what):
    text = f"  {names:23} {what}"
    return textwrap.fill(text, 100, subsequent_indent=" " * 26, break_on_hyphens=False)


def read(path):
    """A YAML file of options -> dict; unknown options and other types are refused."""
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text()) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping, option: value")
    for key in values:
        if key not in TYPES:
            raise UserError(f"{path}: unknown option {key}{closest(str(key), TYPES)}")
    return {key: typed(f"{path}: {key}:", TYPES[key], value) for key, value in values.items()}


def write(c, path):
    """Written aside and renamed: a kill leaves the old file or the new one, never half of one."""
    import yaml

    scratch = Path(path).with_suffix(".partial")
    scratch.write_text(yaml.safe_dump(asdict(c), sort_keys=False))
    os.replace(scratch, path)


# ---- recipe and command line -> Config
def recipes():
    return sorted(p.stem for p in RECIPES.glob("*.yaml"))


def named(argv):
    """The recipe that argv begins with, or None."""
    return argv[0] if argv and not argv[0].startswith("-") else None


def recipe_for(c):
    """The recipe where none is named: the task's own, or the one for any pretrained model."""
    return c.task if c.task in recipes() and not c.reward else "math"


def recipe_path(recipe):
    path = Path(recipe) if recipe.endswith((".yaml", ".yml")) else RECIPES / f"{recipe}.yaml"
    if not path.exists():
        near, all_of_them = closest(recipe, recipes()), ", ".join(recipes())
        raise UserError(f"unknown recipe {recipe}{near} Recipes: {all_of_them}, or a YAML file")
    return path


def parse(argv):
    """Command line -> Config, or UserError. `--help` and `--list` print and exit with 0."""
    recipe, words = named(argv), argv[1:] if named(argv) else argv
    if "--list" in words:
        print(listing())
        sys.exit(0)
    if any(word.startswith("--tyro") for word in words):  # the shell's completion
        import tyro

        how = {"use_underscores": True, "config": [tyro.conf.FlagConversionOff]}
        tyro.cli(Config, args=words, prog="train.py", **how)
    defaults = Config(**read(recipe_path(recipe or "toy_sql")))
    given, _ = command_line(defaults, words, "train.py", ABOUT)
    path = recipe_path(recipe or recipe_for(Config(**given)))
    c = resolved(Config(**read(path) | given), path.stem)
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # by torchrun --max-restarts
    if c.resume == "auto" or not c.resume and restarts != "0":
        begun = any(Path(c.out).glob("checkpoints/step_*"))
        c = continued(c, given) if begun else replace(c, resume="")
    elif c.resume:
        if changed := sorted(given.keys() - {"resume", "steps"}):
            raise UserError(
                f"--resume cannot be combined with --{changed[0]}; only --steps may change. To "
                f"change other options, start a new run with --model {c.resume}"
            )
        c = Config(**run_options(c.resume) | given | {"out": c.resume})
    return check(c)


def run_options(run):
    """The options of a run, out of its folder."""
    path = Path(run) / "config.yaml"
    if not path.exists():
        expected = "expected a folder with config.yaml and checkpoints/"
        raise UserError(f"no run found at '{run}' ({expected})")
    try:
        saved = read(path)
        if missing := [name for name in TYPES if name not in saved]:
            raise UserError(f"{path}: lacks {', '.join(missing[:3])}")
    except UserError as error:
        remedy = f"a run of another version cannot be resumed; start a new one with --model {run}"
        raise UserError(f"{error}; {remedy}") from None
    return saved


def differing(c, saved):
    """Options in which c is not the saved run; what c leaves open, train.py has chosen there."""
    open_ = {("clip_high", -1), ("max_gen_rounds", 0), ("dtype", "auto")}
    changed = dict(asdict(c).items() - saved.items() - open_).keys() & saved.keys()
    return [name for name in TYPES if name in changed - {"out", "resume"}]


def continued(c, given):
    """--resume auto: the same command goes on with the run it began."""
    saved = run_options(c.out)
    for name in differing(c, saved):
        if name != "steps" and (name != "threads" or "threads" in given):
            raise UserError(
                f"--{name} {getattr(c, name)}: the run in {c.out} has {saved[name]}; options "
                "cannot change on resume; choose another --out"
            )
    return Config(**saved | {"resume": c.out, "out": c.out, "steps": c.steps})


def resolved(c, recipe=""):
    """Run folder and number of threads where none are given. -> Config"""
    limit, ranks = os.environ.get("OMP_NUM_THREADS", ""), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = int(limit) if limit.isdigit() and ranks == 1 else cores  # torchrun sets the limit to 1
    threads = c.threads or max(1, cores // ranks)
    return replace(c, threads=threads, out=c.out or f"runs/{recipe or c.task}-seed{c.seed}")


# ---- commands
def early(argv):
    """Before torch is loaded: --help, --list, and what is wrong with the words. -> Config"""
    c = run_command(parse, argv)
    if not named(argv) and not c.resume:
        announce(f"no recipe given: defaults of {recipe_for(c)} (see --list)")
    loading()
    return c


def loading():
    """The first words a person sees: torch takes seconds to load."""
    if sys.stderr.isatty():
        announce("nanoMERCI: loading torch ...")


def announce(text):
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


def run_command(main, *arguments):
    """main(*arguments) as a command: a UserError is one line on stderr and status 2; Ctrl-C is
    status 130; a bug keeps its traceback.
    """
    try:
        return main(*arguments)
    except UserError as error:
        reason = error
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "the disk is full; earlier checkpoints are intact: make room, then --resume"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            remedy = "permission denied; choose a folder you can read and write"
        else:
            raise
        reason = f"{error.filename or 'a file'}: {remedy} ({error.strerror})"
    except (MemoryError, RuntimeError) as error:
        memory = re.search("out of memory|can't allocate memory", str(error))
        if not memory and not isinstance(error, MemoryError):
            raise
        first = (str(error).strip().splitlines() or ["no details"])[0][:200]
        reason = f"out of memory ({first}); lower --micro_batch_tokens, --max_num_seqs or --prompts"
        reason += "; --dry_run estimates the bytes"
    print(f"error: {reason}", file=sys.stderr)
    sys.exit(2)


# ---- --list
def listing():
    """Recipes, tasks, bonuses and objectives, as their files say; none of them is imported."""
    firsts = [(name, (RECIPES / f"{name}.yaml").read_text().split("\n")[0]) for name in recipes()]
    groups = {
        "Recipes (python train.py RECIPE)": [(name, line.lstrip("# ")) for name, line in firsts],
        "Tasks (--task; FILE.py loads your own)": described("tasks"),
        "Bonuses (--bonus; FILE.py:CLASS loads your own)": described("bonuses"),
        "Objectives (--algo; FILE.py:NAME loads your own)": objectives(),
    }
    blocks = ["\n".join([f"{title}:", *starmap(entry, groups[title])]) for title in groups]
    return "\n\n".join(blocks)


def described(folder):
    """The files whose docstring begins with `name: what it is` or `name, name: what they are`."""
    for path in sorted((PACKAGE / folder).glob("[a-z]*.py")):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        names, _, what = " ".join(text.split("\n\n")[0].split()).partition(": ")
        if what and re.fullmatch(r"[\w:]+(, [\w:]+)*", names):
            yield names, what.partition(". ")[0].rstrip(".")


def objectives():
    """The rows of objectives.py, "name": Objective(..., about="what it is")."""
    text = (PACKAGE / "objectives.py").read_text()
    for name, row in re.findall(r'^    "(\w+)": (.*?\)),\n(?=    "|})', text, re.M | re.S):
        yield name, "".join(re.findall(r'about="(.*)"', row))
