"""One flat configuration: every option with its meaning, unit and default. A recipe overrides
defaults, the command line both.

    python train.py [RECIPE] [--option value ...]

Numbers of the MERCI paper are marked (MERCI), of DAPO (DAPO); a choice of ours where the paper is
silent, (ours).
"""

import dataclasses
import difflib
import errno
import os
import re
import sys
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Literal

RECIPES = Path(__file__).parent.parent / "recipes"


class UserError(Exception):
    """Something a user can put right. The command prints it as one line, without a traceback, and
    ends with status 2.
    """


@dataclass(frozen=True)
class Config:
    # ---- what is trained, on what
    task: str = "toy_sql"
    """What to learn: toy_sql, toy_math, arithmetic (built in); math, sql (with --train_data);
    reasoning_gym:NAME.
    """
    model: str = "tiny"
    """Policy: a Hugging Face folder or hub id, a run folder, or `tiny`, built and warm-started
    here.
    """
    sft_seed: int = 0
    """Of the weights and the schooling of `--model tiny`: another number, another warm start."""
    algo: str = "grpo"
    """Advantage and loss: grpo (DeepSeekMath), dapo, dr_grpo (GRPO without std and length
    normalisation).
    """
    bonus: str = "cfn"
    """Bonus: none; cfn (MERCI, a Coin Flipping Network's 1/n); exact (1/n from a table of
    prefixes); rivals (nanomerci/bonuses/rivals.py).
    """

    # ---- the data of --task math and sql
    train_data: str = ""
    """math: a set's name (dapo_math_17k, math, gsm8k), hub id, file or folder. sql: a Spider or
    BIRD folder.
    """
    test_data: str = ""
    """Held-out problems, named likewise (default: a tenth of the training data; sql: the dev split
    of the same folder).
    """
    data_folder: str = ""
    """Folder in which those names are looked up, for machines without network
    (FOLDER/math500.jsonl, FOLDER/bird/).
    """
    columns: str = ""
    """Names of the columns of --train_data, QUESTION,ANSWER, where they are not recognised."""
    sql_match: Literal["bird", "spider"] = "bird"
    """When two results are the same: bird = equal sets of rows; spider = equal rows as often, under
    some column order.
    """
    partial_credit: bool = False
    """sql: a wrong result earns 0.8 c^2 / (gold columns x given columns) for c columns that are
    right.
    """
    perturbed_copies: int = 0
    """sql: perturbed copies of the database on which a query must agree with the gold one too."""
    max_prompt_tokens: int = 0
    """Problems with longer prompts, in tokens, are left out; 0 = none are."""
    grade_timeout: float = 10.0
    """Seconds an answer's grading may take before its worker is killed; a query may take 0.45 of
    it.
    """
    graders: int = 2
    """Grading processes a rank."""

    # ---- a step
    steps: int = 60
    """Training steps; each samples one batch and learns from it."""
    budget: int = 0
    """Prompts after which training ends even before --steps, 0 = no bound. For equal samples where
    dapo takes more a step.
    """
    prompts: int = 16
    """P, prompts a step, over all ranks."""
    group: int = 8
    """G, samples a prompt (MERCI: 8)."""
    minibatches: int = 1
    """Optimiser updates a step, each on an equal share of the batch's prompts."""
    max_new_tokens: int = 48
    """Longest response, in tokens."""
    temperature: float = 1.0
    """Sampling temperature in training; the trainer's log-probs use the same."""
    top_p: float = 1.0
    """Nucleus sampling in training. Below 1 is refused: the trainer's log-probs would have another
    support.
    """
    top_k: int = 0
    """Top-k sampling in training, 0 = off. Refused otherwise, for the same reason."""

    # ---- the loss
    lr: float = 1e-6
    """Learning rate of AdamW."""
    warmup: int = 0
    """Steps over which the learning rate rises linearly from 0."""
    lr_decay: bool = False
    """Whether it then falls linearly, to reach 0 after the last step."""
    beta2: float = 0.95
    """Second-moment decay of AdamW (the first is 0.9)."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: float = 1.0
    """Gradient norm above which gradients are scaled down."""
    clip_low: float = 0.2
    """The ratio pi / pi_old is clipped below 1 - clip_low."""
    clip_high: float = -1.0
    """... and above 1 + clip_high; -1 = the algorithm's own, 0.2 (dapo: 0.28, "clip-higher")."""
    max_gen_rounds: int = 0
    """dapo: rounds of sampling a step may take to find P groups that carry signal; 0 = 10, 1 = no
    dynamic sampling.
    """
    kl_coef: float = 0.0
    """Weight of the k3 KL to the initial policy (DeepSeekMath: 0.04; MERCI's stand-ins: 0)."""
    old_logp: Literal["sampler", "trainer"] = "trainer"
    """Whose log-probs are pi_old when minibatches > 1: the trainer's (one more forward) or the
    sampler's (fp32: the same).
    """
    overlong_buffer: int = 0
    """Soft overlong penalty over the last so many tokens before max_new_tokens, 0 = off (DAPO:
    4096).
    """

    # ---- exploration (MERCI)
    gamma: float = 0.5
    """Weight of the exploration advantage at step 0 (ours); 0 is the plain algorithm, bit for bit.
    rnd and entropy ignore it.
    """
    gamma_decay: int = 200
    """Steps until gamma has fallen by half a cosine to a tenth (MERCI: 200)."""
    alpha: float = 0.5
    """Cap: the bonus changes an advantage by at most the share alpha of its size (ours)."""
    top: float = 0.3
    """First filter: share of a response's tokens whose novelty counts (MERCI: 0.3)."""
    run: int = 3
    """Second filter: kept tokens must stand in runs of at least so many (MERCI's figure: 3)."""
    noise_filter: bool = True
    """Third filter: drop tokens that the task calls noise."""
    bonus_form: Literal["variance", "deviation", "sum"] = "variance"
    """Trajectory bonus: sqrt(mean 1/n) (MERCI), mean of sqrt(1/n) (its ablation), sqrt(sum 1/n)
    (proposition 1 to the letter).
    """
    credit: Literal["response", "token"] = "response"
    """Whom the bonus is paid to: every token of a response alike (MERCI), or each token for the
    uncertainty from it on (UBE).
    """
    bonus_on_zero_variance: bool = False
    """Whether groups that are all wrong or all right get a bonus too, of at most alpha (MERCI: no).
    """

    # ---- the counter (CFN)
    coins: int = 20
    """C, coins a visit (MERCI, CFN: 20)."""
    cfn_features: Literal["frozen", "policy"] = "frozen"
    """Whose hidden states are counted: a frozen copy of the initial policy, or the policy's own
    (they move; sampling has them anyway).
    """
    cfn_hidden: int = 256
    """Width of the head's hidden layer (ours)."""
    cfn_prior: bool = True
    """Frozen random prior, so that an unseen state reads 1/n near 1 (CFN)."""
    cfn_lr: float = 1e-3
    """Learning rate of the head (ours)."""
    cfn_batch: int = 512
    """Visits an update of the head."""
    cfn_pretrain: int = 4
    """Batches of P x G samples of the initial policy to pre-train on (MERCI pre-trains; its size is
    ours).
    """
    cfn_pretrain_epochs: int = 3
    """Passes over them."""
    cfn_replay: int = 65536
    """Visits remembered, a uniform sample of all."""
    cfn_rehearse: int = 1024
    """Remembered visits learned again each step, besides the new ones."""
    oracle_counts: bool = False
    """Keep exact visit counts of every prefix beside the counter and log how near it comes
    (oracle/*; for tasks with short answers).
    """

    # ---- evaluation
    eval_every: int = 20
    """Steps between evaluations; one before and one after are always made. 0 = only those."""
    eval_problems: int = 200
    """Held-out problems evaluated on."""
    eval_k: int = 16
    """Samples a problem."""
    eval_split: Literal["test", "tune"] = "test"
    """What is held out: the test, or for choosing settings as many of the training problems, so
    that the test stays unseen.
    """

    # ---- the run
    seed: int = 0
    """Of everything random in the run."""
    out: str = ""
    """Run folder (default runs/RECIPE-seedN)."""
    resume: str = ""
    """Run folder to continue from its newest checkpoint, its options from its config.yaml; auto:
    --out if it holds a run, else begin.
    """
    save_every: int = 20
    """Steps between checkpoints; one is always made at the end. 0 = only that."""
    keep_checkpoints: int = 2
    """Checkpoints kept, the newest."""
    report: bool = True
    """Draw report.html while the run goes on, and the curves at every checkpoint."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    max_seq_len: int = 0
    """The longest sequence the model is taken to bear, tokens; 0 = what its config says."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of forward and backward; master weights stay float32."""
    kernels: Literal["auto", "torch", "triton"] = "auto"
    """Log-probs and CFN scores by fused Triton kernels or by plain torch; auto = Triton on a GPU.
    """
    micro_batch_tokens: int = 16384
    """Tokens a micro-batch holds at most, padding included; bounds the memory of an update."""
    shard: Literal["none", "fsdp"] = "none"
    """Over several ranks: none = whole replicas; fsdp = each holds a slice of weights, gradients,
    moments, and a copy to sample from.
    """
    gradient_checkpointing: bool = False
    """Backward computes each layer's activations again instead of keeping them: a third more
    arithmetic, a fraction of the memory.
    """
    rank_timeout: float = 1800.0
    """Seconds a rank waits for the others before it takes them for dead and ends."""
    max_num_seqs: int = 512
    """Samples in flight at once on a rank; bounds the key-value cache."""
    threads: int = 0
    """CPU threads, 0 = torch's choice."""
    logger: Literal["none", "tensorboard", "wandb"] = "none"
    """Where the metrics go besides metrics.jsonl: nowhere, to RUN/tensorboard, or to Weights &
    Biases (project nanomerci).
    """
    dry_run: bool = False
    """Print what the run would do: prompts, tokens, memory, seconds a step; no GPU and no weights
    are needed.
    """

    @property
    def query_seconds(self):
        """The gold query and the answer's must both fit into the deadline."""
        return 0.45 * self.grade_timeout

    @property
    def backend(self):
        """For the kernels: None lets them choose by device."""
        return None if self.kernels == "auto" else self.kernels


def check(c):
    """Everything that can be known wrong before any work is done. Raises UserError."""

    def need(ok, what, got, wanted):
        if not ok:
            raise UserError(f"--{what} {got}: {wanted}")

    for name in (
        "steps",
        "prompts",
        "minibatches",
        "max_new_tokens",
        "coins",
        "eval_problems",
        "eval_k",
        "micro_batch_tokens",
        "keep_checkpoints",
        "graders",
        "cfn_pretrain",
        "cfn_pretrain_epochs",
        "cfn_batch",
        "cfn_replay",
        "max_num_seqs",
        "run",
    ):
        need(getattr(c, name) >= 1, name, getattr(c, name), "wanted at least 1")
    need(
        c.group >= (1 if c.bonus == "none" and c.algo == "dr_grpo" else 2),
        "group",
        c.group,
        "a group of one has no standard deviation; wanted at least 2",
    )
    need(
        c.prompts % c.minibatches == 0,
        "minibatches",
        c.minibatches,
        f"does not divide --prompts {c.prompts}",
    )
    need(
        1e-3 <= c.temperature <= 1e3,
        "temperature",
        c.temperature,
        "training samples; wanted 0.001 to 1000",
    )
    need(
        c.top_p == 1,
        "top_p",
        c.top_p,
        "the trainer's log-probs cover the full vocabulary, so sampling must too; wanted 1.0",
    )
    need(
        c.top_k == 0,
        "top_k",
        c.top_k,
        "the trainer's log-probs cover the full vocabulary, so sampling must too; wanted 0",
    )
    need(
        0 <= c.alpha < 1,
        "alpha",
        c.alpha,
        "wanted 0 <= alpha < 1, or a wrong answer could earn a positive advantage",
    )
    need(0 < c.top <= 1, "top", c.top, "is a share of tokens; wanted above 0, at most 1")
    for name in (
        "gamma",
        "kl_coef",
        "gamma_decay",
        "overlong_buffer",
        "warmup",
        "save_every",
        "eval_every",
        "weight_decay",
        "cfn_rehearse",
        "threads",
        "clip_low",
        "clip_high",
        "cfn_hidden",
        "max_gen_rounds",
        "budget",
        "max_seq_len",
        "max_prompt_tokens",
        "perturbed_copies",
    ):
        need(0 <= getattr(c, name) < float("inf"), name, getattr(c, name), "wanted 0 or more")
    for f in dataclasses.fields(c):
        if f.type is int and "seed" not in f.name:
            need(
                -(2**31) < getattr(c, f.name) < 2**31,
                f.name,
                getattr(c, f.name),
                "is too large; wanted less than 2^31",
            )
    need(0 <= c.beta2 < 1, "beta2", c.beta2, "wanted 0 <= beta2 < 1")
    for name in ("seed", "sft_seed"):
        need(abs(getattr(c, name)) < 2**62, name, getattr(c, name), "is too large")
    need(
        c.algo == "dapo" or c.max_gen_rounds == 1,
        "max_gen_rounds",
        c.max_gen_rounds,
        f"dynamic sampling belongs to --algo dapo; wanted 1 with {c.algo}",
    )
    need(
        c.bonus != "entropy" or c.credit == "response",
        "credit",
        c.credit,
        "the entropy bonus is per token anyway; wanted response",
    )
    need(
        c.cfn_features == "frozen" or not c.kl_coef,
        "cfn_features",
        c.cfn_features,
        "--kl_coef needs the frozen trunk; wanted frozen, or --kl_coef 0",
    )
    need(
        c.overlong_buffer < c.max_new_tokens,
        "overlong_buffer",
        c.overlong_buffer,
        f"wanted less than --max_new_tokens {c.max_new_tokens}",
    )
    for name in ("lr", "cfn_lr", "max_grad_norm", "grade_timeout", "rank_timeout"):
        need(getattr(c, name) > 0, name, getattr(c, name), "wanted above 0")
    for name, most in (
        ("lr", 1e3),
        ("cfn_lr", 1e3),
        ("grade_timeout", 1e6),
        ("rank_timeout", 1e6),
        ("threads", 1024),
        ("graders", 1024),
    ):
        need(getattr(c, name) <= most, name, getattr(c, name), f"wanted at most {most:g}")
    need(
        c.logger == "none" or find_spec(c.logger),
        "logger",
        c.logger,
        f"is not installed; pip install {c.logger}, or --logger none",
    )
    return c


def closest(word, words):
    found = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else ""


def read(path):
    """A YAML file of options -> dict; unknown keys are refused. Types are checked when the command
    line is.
    """
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text()) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({str(error).splitlines()[0]})") from None
    types = {f.name: f.type for f in dataclasses.fields(Config)}
    for key, value in values.items() if isinstance(values, dict) else [("(not a mapping)", None)]:
        if key not in types:
            raise UserError(f"{path}: unknown option {key}{closest(str(key), types)}")
        if (
            types[key] is float and isinstance(value, int | str) and not isinstance(value, bool)
        ):  # YAML 1.1 reads 1e-6 as text
            value = values[key] = _as_float(value, path, key)
        allowed = getattr(types[key], "__args__", None)
        if (value not in allowed) if allowed else (type(value) is not types[key]):
            wanted = "|".join(allowed) if allowed else types[key].__name__
            raise UserError(f"{path}: {key}: {value!r} is not a {wanted}")
    return values


def _as_float(value, path, key):
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise UserError(f"{path}: {key}: {value!r:.40} is not a float") from None


def write(c, path):
    """Written aside and renamed: a kill leaves the old file or the new one, never half of one."""
    import yaml

    scratch = Path(path).with_suffix(".partial")
    scratch.write_text(yaml.safe_dump(dataclasses.asdict(c), sort_keys=False))
    os.replace(scratch, path)


def recipes():
    return sorted(p.stem for p in RECIPES.glob("*.yaml"))


def parse(argv):
    """Command line -> Config. `--help` and `--list` print and end with 0; whatever is wrong raises
    UserError.
    """
    names = [f.name for f in dataclasses.fields(Config)]
    bare = lambda word, after: (
        word in ("--dry-run", "--dry_run") and after not in ("True", "False")
    )  # needs no value
    argv = [
        f"{word}=True" if bare(word, after) else word for word, after in zip(argv, [*argv[1:], ""])
    ]
    recipe = "toy_sql"
    if argv and not argv[0].startswith("-"):
        recipe = argv.pop(0)
    if "--list" in argv:
        from nanomerci.runtime import usage

        print(usage.listing())
        sys.exit(0)
    path = Path(recipe) if recipe.endswith((".yaml", ".yml")) else RECIPES / f"{recipe}.yaml"
    if not path.exists():
        raise UserError(
            f"unknown recipe {recipe}{closest(recipe, recipes())} Recipes: "
            f"{', '.join(recipes())}, or a YAML file"
        )
    given = {}
    for word in argv:
        if (
            word.startswith("--") and word != "--help" and not word.startswith("--tyro-")
        ):  # --tyro-print-completion
            name = word[2:].split("=")[0].replace("-", "_")
            base = name.removeprefix("no_") if name.removeprefix("no_") in names else name
            if base not in names:
                raise UserError(
                    "unknown option "
                    f"{word.split('=')[0]}{closest(name, names).replace('mean ', 'mean --')} "
                    "See --help"
                )
            given[base] = word
    defaults = Config(**read(path))
    if "--help" in argv or "-h" in argv:
        from nanomerci.runtime import usage

        print(usage.help(recipe, defaults))
        sys.exit(0)
    import tyro

    noise = StringIO()
    try:
        with redirect_stderr(noise):
            c = tyro.cli(
                Config,
                default=defaults,
                args=argv,
                prog="train.py",
                config=(tyro.conf.FlagConversionOff,),
                use_underscores=True,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        words = [line.strip("│╭╮╰╯─ ") for line in noise.getvalue().splitlines()]
        words = (
            " ".join(w for w in words if w)
            .replace("Value error ", "")
            .replace("Parsing error ", "")
        )
        raise UserError(
            re.split(" Argument helptext:| For full helptext", words)[0][:300]
            + "; see python train.py --help"
        ) from None
    c = resolved(dataclasses.replace(c, out=c.out or f"runs/{path.stem}-seed{c.seed}"))
    restarted = (
        not c.resume and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    )  # by torchrun --max-restarts
    if c.resume == "auto" or restarted:
        return check(
            go_on(c)
            if any(Path(c.out).glob("checkpoints/step_*"))
            else dataclasses.replace(c, resume="")
        )
    if c.resume:
        changed = sorted(set(given) - {"resume", "steps"})
        if changed:
            raise UserError(
                f"--resume continues a run as it was; it cannot change --{changed[0]} (only "
                "--steps may be given with it)"
            )
        c = Config(
            **{
                **run_options(c.resume),
                "resume": c.resume,
                "out": c.resume,
                **({"steps": c.steps} if "steps" in given else {}),
            }
        )
    return check(c)


def run_options(run):
    """The options of a run, out of its folder."""
    saved = read(Path(run) / "config.yaml")
    if missing := {f.name for f in dataclasses.fields(Config)} - set(saved):
        raise UserError(
            f"{run}/config.yaml: lacks {', '.join(sorted(missing)[:3])}; it is not the "
            "configuration of a run"
        )
    return saved


def go_on(c):
    """--resume auto: the same command goes on with the run it began."""
    saved = run_options(c.out)
    for name, value in dataclasses.asdict(c).items():
        if name not in ("resume", "out", "steps") and saved[name] != value:
            raise UserError(
                f"--{name} {value}: the run in {c.out} has {saved[name]}, and going on cannot "
                "change it; "
                "choose another --out"
            )
    return dataclasses.replace(c, resume=c.out)


def resolved(c):
    """The algorithm's own values where none are given."""
    own = {"clip_high": 0.28 if c.algo == "dapo" else 0.2} if c.clip_high == -1 else {}
    own |= {"max_gen_rounds": 10 if c.algo == "dapo" else 1} if c.max_gen_rounds == 0 else {}
    return dataclasses.replace(c, **own)


def loading():
    """The first words a person sees: torch takes seconds to load."""
    if sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        print("nanoMERCI: loading torch ...", file=sys.stderr, flush=True)


def early(argv):
    """Before torch is loaded: --help, --list, and what is wrong with the words."""
    run_command(lambda: parse(argv))
    loading()


def run_command(main):
    """Call main() as a command: a UserError is one line on stderr and status 2; Ctrl-C is status
    130; a bug keeps its traceback.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "the disk is full; what was saved before is whole: make room, then go on with --resume"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            remedy = "it cannot be written or read there; wanted a place you may use"
        else:
            raise
        print(f"error: {error.filename or 'a file'}: {remedy} ({error.strerror})", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search(
            "out of memory|can't allocate memory", str(error)
        ):
            raise
        reason = (str(error).strip().splitlines() or ["no more is known"])[0][:200]
        print(
            f"error: out of memory ({reason}); lower --micro_batch_tokens, --max_num_seqs or --prompts; "
            "--dry_run counts the bytes",
            file=sys.stderr,
        )
        sys.exit(2)
