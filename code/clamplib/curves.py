"""Training curves on wandb, where that is wanted and possible; training never fails for the want of them."""

import logging
import os
from collections.abc import Callable

logger = logging.getLogger(__name__)


def start(
    *, project: str, name: str, settings: dict, key: str = "", wanted: bool = True
) -> Callable[[dict], None] | None:
    """A function that takes the numbers of an epoch to wandb, or None, with the reason in a warning.

    Without a key (an argument, or WANDB_API_KEY) nothing is sent; with WANDB_MODE=offline no key is needed
    and the curves stay in the folder wandb/. A key that wandb refuses, a placeholder say, is only warned of.
    """
    if not wanted:
        return None
    offline = os.environ.get("WANDB_MODE") == "offline"
    key = key or os.environ.get("WANDB_API_KEY", "")
    if not (key or offline):
        logger.warning("no curves on wandb: WANDB_KEY is empty")
        return None
    try:
        import wandb

        if not offline:
            wandb.login(key=key, verify=True)
        run = wandb.init(project=project, name=name, config=settings)
    except Exception as error:  # whatever goes wrong here is no reason not to train
        logger.warning("no curves on wandb: %s: %s", type(error).__name__, error)
        return None
    return lambda numbers: run.log(numbers, step=numbers["epoch"])
