"""README.md of an export says what the model is, what it was trained on and how far, and what is not known of it."""

from collections.abc import Iterable, Iterator
from typing import Any

from data_pipeline.shown import shown
from pretrain.config.run import RunConfig
from pretrain.export.source import Exported, Source
from pretrain.models.config import TransformerConfig
from pretrain.tasks.architecture import Architecture

CARD = "README.md"


def model_card(source: Source, architecture: Architecture[Any] | None, exported: Exported) -> str:
    """It returns the card, in Markdown. Whatever of it comes from outside cannot be more than text."""
    facts = [f"- {name}: {value}" for name, value in _facts(source, exported)]
    parts = [
        *_front_matter(architecture),
        f"# {_plain(source.config.run.name)}",
        "",
        _summary(source, exported),
    ]
    parts += ["", *facts, "", "## Use", *_use(architecture), "", "## What is left to you", *LEFT]
    return "\n".join(parts) + "\n"


LEFT = (
    "No licence is given here: it depends on the data that the model was trained on, and on you. Neither has",
    "anyone tried the model on anything but the validation data above: intended use, limits and biases are not known.",
)


def _front_matter(architecture: Architecture[Any] | None) -> list[str]:
    """What Hugging Face reads of a card."""
    if architecture is None:
        return []
    return ["---", "library_name: transformers", f"pipeline_tag: {architecture.pipeline_tag}", "---"]


def _summary(source: Source, exported: Exported) -> str:
    held = f", as {exported.architecture}" if exported.architecture else ""
    return (
        f"Pretrained with Surefoot: {exported.numbers:,} numbers in {exported.tensors} tensors, "
        f"{exported.dtype}{held}. Weights are exported from checkpoint {_code(source.manifest.tag)}."
    )


def _facts(source: Source, exported: Exported) -> Iterator[tuple[str, str]]:
    """It yields what is known of the training, by name."""
    config, manifest = source.config, source.manifest
    state, unit = manifest.state, config.model.loss_unit
    yield (
        "Steps",
        f"{state.step:,} of {config.run.steps:,}, {state.updates:,} updates, {state.samples:,} samples",
    )
    yield "Tokens", f"{state.tokens:,}"
    yield "Loss of the last step", _number(source.step, "loss", unit)
    validation = source.validation
    at = f" at step {validation['step']:,}" if isinstance(validation.get("step"), int) else ""
    yield "Validation loss", _number(validation, "validation_loss", unit) + at
    yield "Data and tokenizer, by fingerprint", _code(manifest.data_fingerprint)
    yield "Health", _health(source)
    yield "Methods of stability", ", ".join(_methods(config))
    yield "Computed in", config.precision.dtype
    yield "Seed", str(config.run.seed)
    versions = (f"{name} {version}" for name, version in sorted(manifest.versions.items()))
    yield "Trained with", _code(", ".join(versions))


def _health(source: Source) -> str:
    certificate = source.certificate
    if certificate is None:
        return "not certified: whether the run stayed healthy after this checkpoint is not known"
    if not certificate.horizon:
        return "certified at the end of the run, without steps after it that could show more"
    return f"certified at step {certificate.step:,}: {certificate.horizon:,} healthy steps had followed"


def _methods(config: RunConfig) -> Iterable[str]:
    """It names what kept the training stable, of what is folded into the weights."""
    model = config.model
    if isinstance(model, TransformerConfig):
        if model.reparametrization == "sigma":
            yield "sigmaReparam (folded into the weights)"
        if model.attention.kind == "mlra":
            yield f"low-rank attention of rank {model.attention_rank} (folded into dense matrices)"
        yield f"{model.norm_placement} norms"
    yield (
        "watchdog with rollbacks"
        if config.watchdog.enabled and not config.watchdog.dry_run
        else "no watchdog"
    )


def _use(architecture: Architecture[Any] | None) -> list[str]:
    if architecture is None:
        return [
            "`model.safetensors` holds dense matrices by the names that Surefoot gives them, `config.toml` the",
            "settings of the model that they make.",
        ]
    return [
        "```python",
        f"from transformers import {architecture.auto_class}, AutoTokenizer",
        "",
        f'model = {architecture.auto_class}.from_pretrained("THIS FOLDER")',
        'tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER")',
        "```",
        "Texts begin behind the end of another one in training, so a prompt does best behind `tokenizer.bos_token_id`.",
    ]


def _number(row: Any, key: str, unit: str) -> str:
    value = row.get(key)
    return f"{value:.4f} {unit}" if isinstance(value, int | float) else "not recorded"


def _code(text: object) -> str:
    return f"`{_plain(text)}`"


def _plain(text: object) -> str:
    return shown(text).replace("`", "'")
