"""The pruner that a checkpoint was trained with: the field `flowcut` of its config.json.

Training writes it; loading and evaluation use it by default. transformers keeps the field and ignores it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowcut.pruner import Pruner
from flowcut.registry import parse_pruner, pruner_from_config, pruner_to_config, pruner_to_text

logger = logging.getLogger(__name__)

FIELD = "flowcut"


def remembered_pruner(config: Any, where: object) -> Pruner | None:
    """The pruner that a config stores, or None.

    config: a model's config, or the fields of a config.json. where: the checkpoint, for messages, and for files that
        the pruner needs and that lie beside it.

    Raises ValueError, one line, when the field is invalid.
    """
    value = config.get(FIELD) if isinstance(config, Mapping) else getattr(config, FIELD, None)
    if value is None:
        return None
    try:
        return pruner_from_config(value).beside(Path(str(where)))
    except ValueError as error:
        raise ValueError(f"field {FIELD!r} in the config.json of {where}: {error}") from error


def remember(config: Any, pruner: Pruner | None) -> None:
    """Write a pruner into a model's config, so that every checkpoint stores it; None removes the field."""
    if pruner is not None:
        setattr(config, FIELD, pruner_to_config(pruner))
    elif hasattr(config, FIELD):
        delattr(config, FIELD)


def pruner_to_use(text: str | None, config: Any, where: object, switch_off: str) -> Pruner | None:
    """The pruner to run a checkpoint with; logs a warning of one line where it may be unexpected.

    text: as `parse_pruner` reads it; None uses the checkpoint's.
    config, where: see `remembered_pruner`.
    switch_off: how to run without a pruner, for messages.

    A warning reports that the checkpoint's pruner is used, or that the requested one differs from it in budget, method
    or setting, or is none.

    Raises ValueError for text that names no pruner, and without text for an invalid field.
    """
    if text is None:
        remembered = remembered_pruner(config, where)
        if remembered is not None:
            trained = pruner_to_text(remembered)
            logger.warning("%s was trained with %s and runs with it; %s turns that off", where, trained, switch_off)
        return remembered
    wanted = parse_pruner(text)
    try:
        remembered = remembered_pruner(config, where)
    except ValueError as error:
        logger.warning("%s; running with %s", error, pruner_to_text(wanted))
        return wanted
    if remembered is not None and wanted != remembered:
        given = "all visual tokens (none)" if wanted is None else pruner_to_text(wanted)
        logger.warning("%s was trained with %s but runs with %s", where, pruner_to_text(remembered), given)
    return wanted
