"""The bridge to lm-evaluation-harness: its own tasks, prompts and metrics, on a model that is open in this process.

Nothing is fetched unless a task names a data set of the hub: task files in `include_path` with local data run offline.
A task folder is code: `!function` in a YAML file runs Python from beside it, so run only folders that you trust.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from limbeck.errors import MissingExtra, RecipeError
from limbeck.models.generation import without_defaults

if TYPE_CHECKING:
    from collections.abc import Mapping

    from limbeck.models.hf import HfLM
    from limbeck.recipe import Harness

PURPOSE = "evaluate.harness"
RESAMPLES = 1000
"""Of the standard errors that have no closed form; with none the harness gives those that have one neither."""


def run_harness(models: Mapping[str, HfLM], settings: Harness, *, seed: int, chat: bool) -> dict[str, Any]:
    """Every model's metrics as the harness gives them: {model: {task: {metric: value}}}; a metric's name has the
    harness's filter after a comma, `_stderr` metrics are its own standard errors.

    `chat` renders prompts by the model's chat template. Raises MissingExtra without the package, RecipeError when a
    task does not exist."""
    manager = task_manager(settings)
    return {name: _run(lm, settings, manager, seed, chat) for name, lm in models.items()}


def task_manager(settings: Harness) -> Any:
    """The harness's index of tasks. Raises MissingExtra or RecipeError as `run_harness`."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingExtra("lm_eval", "eval", PURPOSE) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager: Any = None
    unknown = list(settings.tasks)
    # Reading the index of its own tasks takes seconds: it is left out where the folder has all that is asked for.
    for shipped in (False, True) if settings.include_path else (True,):
        if unknown:
            manager = TaskManager(include_path=settings.include_path, include_defaults=shipped)
            unknown = [task for task in settings.tasks if task not in set(manager.all_tasks)]
    if unknown:
        where = f" or in {settings.include_path}" if settings.include_path else ""
        raise RecipeError(
            f"evaluate.harness.tasks names {', '.join(unknown)}, which lm-evaluation-harness does not know{where}. "
            "`lm-eval ls tasks` lists its tasks; evaluate.harness.include_path adds a folder of your own."
        )
    return manager


def _run(lm: HfLM, settings: Harness, manager: Any, seed: int, chat: bool) -> dict[str, dict[str, float]]:
    import lm_eval
    from lm_eval.models import huggingface

    wrap: Any = huggingface.HFLM  # the package hides its signatures from type checkers
    simple_evaluate: Any = lm_eval.simple_evaluate
    model = wrap(
        pretrained=lm.model,
        tokenizer=lm.tokenizer,
        batch_size=settings.batch_size,
        max_length=lm.max_context,
        device=str(lm.device),
    )
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # it would fork this process, whose threads a fork does not have
    with without_defaults(lm.model, lm.end_ids), contextlib.redirect_stdout(sys.stderr):  # it prints
        found = simple_evaluate(
            model,
            tasks=list(settings.tasks),
            limit=settings.limit,
            task_manager=manager,
            bootstrap_iters=RESAMPLES,
            log_samples=False,
            apply_chat_template=chat,
            **dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), seed),
        )
    return {
        task: {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
        for task, metrics in found["results"].items()
    }
