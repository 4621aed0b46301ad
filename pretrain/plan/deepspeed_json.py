"""The DeepSpeed JSON of a run is derived from configuration and plan, and the user's own JSON is merged over it."""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hjson

from data_pipeline.parsing import parsed_as, read_whole
from data_pipeline.shown import shown
from pretrain.config.keys import nearest
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigurationError, Problem
from pretrain.plan.batch import BatchEquation
from pretrain.plan.deepspeed_keys import KNOWN_KEYS, OWNED_KEYS, REFUSED_KEYS, ZERO_3_DEFAULTS
from pretrain.plan.memory import LARGEST_BUCKET

Json = dict[str, Any]

AUTO = "auto"
"""What the Hugging Face integration writes for a value that follows from elsewhere."""


def deepspeed_json(config: RunConfig, batch: BatchEquation, parameters: int) -> Json:
    """It returns what `deepspeed.initialize` is given; `parameters` counts those of the fullest rank.

    Raises ConfigurationError where the user's JSON contradicts.
    """
    derived = derive(config, batch, parameters)
    path = config.run.deepspeed_config
    if path is None:
        return derived
    user = drop_auto(read_json(path))
    if problems := list(json_problems(user, derived)):
        raise ConfigurationError(f"{path}: does not fit this configuration", problems)
    return merge(derived, user)


def derive(config: RunConfig, batch: BatchEquation, parameters: int) -> Json:
    """It returns the JSON that follows from the configuration alone."""
    bf16 = config.precision.dtype == "bf16"
    # Sums of many micro-batches lose small gradients in bf16; without ZeRO, DeepSpeed cannot accumulate in fp32.
    accumulation = {"data_types": {"grad_accum_dtype": "fp32"}} if bf16 and config.parallel.zero_stage else {}
    parallel = config.parallel
    # Between stages DeepSpeed (0.19.8) can cut over tensor-parallel ranks only one tensor that has a gradient, and does
    # so for ever in the shape that the first one had.
    cut = parallel.tensor > 1 and parallel.pipeline > 1
    uncut = cut and (config.data.ragged or config.model.outline(config.data).handed_on > 1)
    pipeline = {"pipeline": {"pipe_partitioned": False, "grad_partitioned": False}} if uncut else {}
    return {
        "train_batch_size": batch.samples,
        "train_micro_batch_size_per_gpu": batch.micro,
        "gradient_accumulation_steps": batch.accumulation,
        "gradient_clipping": config.optimizer.gradient_clipping,
        "zero_optimization": {
            "stage": config.parallel.zero_stage,
            # DeepSpeed takes memory for all of it, whatever the model needs.
            "reduce_bucket_size": min(parameters, LARGEST_BUCKET),
        },
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": bf16},
        **accumulation,
        **pipeline,
        "steps_per_print": sys.maxsize,
    }


def read_json(path: Path) -> Json:
    """Parse JSON with comments (Hjson, as DeepSpeed reads it). Raises ConfigurationError."""
    try:
        with parsed_as(ConfigurationError, path):
            document = hjson_document(read_whole(path).decode(), path)
    except OSError as error:
        raise ConfigurationError(f"{shown(path)}: cannot be read: {error.strerror}") from None
    if not isinstance(document, dict):
        raise ConfigurationError(f"{shown(path)}: must hold a JSON object")
    return document


def hjson_document(text: str, path: Path) -> Any:
    """It parses Hjson. Raises ConfigurationError, which names the line, and ValueError."""
    try:
        return hjson.loads(text, object_pairs_hook=refuse_duplicates)
    except hjson.HjsonDecodeError as error:
        raise ConfigurationError(
            f"{shown(path)}:{error.lineno}: not valid JSON: {shown(error.msg)}"
        ) from None


def refuse_duplicates(pairs: list[tuple[str, Any]]) -> Json:
    counts = Counter(name for name, _ in pairs)
    if repeated := [shown(name) for name, times in counts.items() if times > 1]:
        raise ValueError(f"{', '.join(repeated)} stands there more than once")
    return dict(pairs)


def drop_auto(document: Json) -> Json:
    """It returns the document without the values that are left to us."""
    return {
        key: drop_auto(value) if isinstance(value, dict) else value
        for key, value in document.items()
        if value != AUTO
    }


def json_problems(user: Json, derived: Json) -> Iterator[Problem]:
    """It yields unknown keys, keys that cannot be used here, and values that contradict the configuration."""
    for key in user:
        if key in REFUSED_KEYS:
            yield Problem(key, "cannot be set in the JSON", REFUSED_KEYS[key])
        elif key not in KNOWN_KEYS:
            similar = " or ".join(nearest(key, KNOWN_KEYS))
            yield Problem(key, "DeepSpeed has no such key", f"did you mean {similar}?" if similar else "")
    yield from bucket_problems(user)
    for key, own in OWNED_KEYS.items():
        given, due = look_up(user, key), look_up(derived, key)
        if given is not None and given != due:
            rule = f"contradicts the configuration, from which {due} follows"
            yield Problem(key, rule, f"remove it, or set {own}", str(given))


def bucket_problems(user: Json) -> Iterator[Problem]:
    """It yields what is wrong with the keys that the estimates read."""
    if not isinstance(zero := user.get("zero_optimization", {}), dict):
        yield Problem("zero_optimization", "must be a table of keys", 'for example {"stage": 1}', str(zero))
        return
    for key, default in {"reduce_bucket_size": LARGEST_BUCKET, **ZERO_3_DEFAULTS}.items():
        size, least = zero.get(key, default), 0 if key in ZERO_3_DEFAULTS else 1
        if (
            isinstance(size, bool)
            or not isinstance(size, int | float)
            or not (size >= least and size % 1 == 0)
        ):
            rule = f"must be a whole number, at least {least}"
            yield Problem(f"zero_optimization.{key}", rule, f"for example {default}", str(size))
    for key in ("contiguous_gradients", "overlap_comm"):
        if not isinstance(value := zero.get(key, False), bool):
            yield Problem(f"zero_optimization.{key}", "must be true or false", "for example true", str(value))


def look_up(document: Json, key: str) -> Any:
    """It returns the value at a dotted key; none where there is none."""
    section, _, name = key.rpartition(".")
    table = document.get(section, {}) if section else document
    return table.get(name) if isinstance(table, dict) else table


def merge(base: Json, over: Json) -> Json:
    """It returns `base` with the values of `over`; tables are merged key by key."""
    merged = {**base, **over}
    for key in base.keys() & over.keys():
        if isinstance(base[key], dict) and isinstance(over[key], dict):
            merged[key] = merge(base[key], over[key])
    return merged
