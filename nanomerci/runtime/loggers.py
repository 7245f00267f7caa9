"""Where metrics go besides metrics.jsonl: --logger tensorboard or wandb. Each is optional, and
imported only when asked for.

A logger is made of (config, run folder, last step done) and is then called with the metrics of
every step.
"""

from dataclasses import asdict
from secrets import token_hex

from nanomerci.runtime.config import UserError


def numbers(m):
    """The metrics that are one number: no intervals, and not the step itself."""
    return {
        name: value
        for name, value in m.items()
        if isinstance(value, int | float) and name != "step"
    }


def tensorboard(c, folder, done):
    """-> a function that writes the numbers of a step to RUN/tensorboard; what a killed run wrote
    after step `done` is dropped.
    """
    from torch.utils.tensorboard import SummaryWriter

    board = SummaryWriter(folder / "tensorboard", purge_step=done + 1)

    def write(m):
        for name, value in numbers(m).items():
            board.add_scalar(name, value, m["step"])
        board.flush()

    return write


def weights_and_biases(c, folder, done):
    """-> a function that logs a step to Weights & Biases; a resumed run goes on in the same place.
    Offline: WANDB_MODE=offline.
    """
    import wandb

    known = folder / "wandb_id"
    if not known.exists():
        known.write_text(token_hex(4))
    try:
        run = wandb.init(
            project="nanomerci",
            name=folder.name,
            dir=folder,
            id=known.read_text(),
            resume="allow",
            config=asdict(c),
            settings=wandb.Settings(console="off"),
        )
    except wandb.Error as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--logger wandb: {reason}; log in with `wandb login`, or set WANDB_MODE=offline"
        ) from None
    return lambda m: run.log(numbers(m), step=m["step"], commit=True)


LOGGERS = {
    "none": lambda c, folder, done: lambda m: None,
    "tensorboard": tensorboard,
    "wandb": weights_and_biases,
}
