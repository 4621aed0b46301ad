"""What is alike in all stock decoders that hold a GPT: their settings are a table of keys, which is read both ways."""

import json
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from data_pipeline.errors import DataError
from data_pipeline.shown import shown
from data_pipeline.text.config import TextConfig
from data_pipeline.text.huggingface import tokenizer_files
from data_pipeline.text.tokenizer import TOKENIZER_FILE, Tokenizer
from pretrain.errors import ConfigurationError, Problem
from pretrain.tasks.architecture import Architecture, Table, flattened, nested, obstacle
from pretrain.tasks.gpt.config import GPTConfig

CONFIG_JSON, GENERATION_JSON = "config.json", "generation_config.json"

HARMLESS = {
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "dtype",
    "torch_dtype",
    "id2label",
    "label2id",
    "model_type",
    "problem_type",
    "return_dict",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
    "tokenizer_class",
    "transformers_version",
    "use_cache",
}
"""Keys of `config.json` that change nothing about what the layers compute."""


@dataclass(frozen=True)
class Keys:
    """These are the keys of `config.json`, nested ones dotted."""

    same: Mapping[str, str]
    """Theirs -> ours with the same value, such as `n_layer` -> `model.num_layers`."""
    fixed: Mapping[str, Any]
    """What all models that we have in common say."""
    otherwise: Mapping[str, Any]
    """What a key means that is left out; None: what follows from others, on both sides alike."""
    earlier: Mapping[str, str] = field(default_factory=dict)
    """Names of earlier versions of `transformers` -> those of today. Both are written."""
    harmless: Set[str] = frozenset()
    """Keys that change nothing, besides HARMLESS."""


class StockDecoder(Architecture[GPTConfig]):
    """It writes and reads the settings of an architecture by its table of keys."""

    pipeline_tag, auto_class = "text-generation", "AutoModelForCausalLM"
    model_class: ClassVar[str]
    """Its class in `transformers`."""
    needs: ClassVar[Mapping[str, Any]]
    """Keys of [model] with the only value that it has."""
    keys: ClassVar[Keys]
    weightless: ClassVar[tuple[str, ...]]
    """Ends of the names of tensors that are no weights: masks and tables that follow from the settings."""

    def obstacles(self, model: GPTConfig) -> Iterator[Problem]:
        """Positions, norms, feed-forward layer and heads must be as the architecture has them."""
        ours = flattened(model.model_dump())
        for key, needed in self._needs.items():
            if ours[key] != needed:
                yield obstacle(self.name, key, needed, ours[key])
        key = "attention.num_key_value_heads"
        if f"model.{key}" not in self.keys.same.values():
            heads, groups = model.attention.num_heads, model.num_key_value_heads
            if groups != heads:
                yield obstacle(self.name, key, heads, groups)

    def documents(
        self, model: GPTConfig, data: TextConfig, dtype: torch.dtype, companions: Mapping[str, bytes]
    ) -> dict[str, Table]:
        """Settings of the model, of its generation, and the tokenizer."""
        if TOKENIZER_FILE not in companions:
            raise DataError(
                f"the checkpoint holds no {TOKENIZER_FILE}, since none lay beside the data, and a model of "
                "Hugging Face's has one; `--to safetensors` needs none"
            )
        text = Tokenizer.of_model(companions.__getitem__, TOKENIZER_FILE, model.vocabulary_size)
        ends = dict.fromkeys(("bos_token_id", "eos_token_id"), text.end_of_text)
        settings = self._settings(model, data)
        earlier = {old: settings[new] for old, new in self.keys.earlier.items()}
        about = {
            "architectures": [self.model_class],
            "model_type": self.model_type,
            "dtype": str(dtype).removeprefix("torch."),
        }
        return {
            CONFIG_JSON: about | nested(settings | earlier) | ends,
            GENERATION_JSON: dict(ends),
            **tokenizer_files(text, data.sequence_length),
        }

    def sections(self, settings: Table) -> Table:
        """It refuses every key that has another value than our models can have, or that is not known."""
        problems: list[Problem] = []
        known = {key: value for key, value in settings.items() if key not in HARMLESS | self.keys.harmless}
        theirs = self._with_defaults(self._todays(flattened(known), problems))
        for key, needed in self.keys.fixed.items():
            if (found := theirs.pop(key)) != needed:
                problems.append(_problem(key, found, f"our models have {json.dumps(needed)}"))
        ours: Table = {}
        for key, name in self.keys.same.items():
            if key not in theirs:
                problems.append(Problem(f"{CONFIG_JSON}: {key}", "is missing"))
            elif (value := theirs.pop(key)) is not None and ours.setdefault(name, value) != value:
                problems.append(
                    _problem(key, value, f"{name} is {json.dumps(ours[name])} by another key of its")
                )
        problems += self._unknown(theirs, ours)
        if problems:
            raise ConfigurationError(f"{self.name}: not a model that can be trained on here", problems)
        return nested({f"model.{key}": value for key, value in self._needs.items()} | ours)

    def canonical(self, name: str) -> str | None:
        """It leaves out what is no weight."""
        return None if name.endswith(self.weightless) else name

    @property
    def _needs(self) -> Table:
        biases = {"bias": True} if self.has_biases else {}
        return {"norm_placement": "pre", **self.needs, **biases}

    def _settings(self, model: GPTConfig, data: TextConfig) -> Table:
        """It returns the keys of `config.json`, nested ones dotted."""
        ours = flattened({"model": model.model_dump(), "data": {"sequence_length": data.sequence_length}}) | {
            "model.ffn_hidden_size": model.ffn_size,
            "model.attention.num_key_value_heads": model.num_key_value_heads,
        }
        return {key: ours[name] for key, name in self.keys.same.items()} | dict(self.keys.fixed)

    def _todays(self, theirs: Table, problems: list[Problem]) -> Table:
        """It returns the settings by the names of today's `transformers`."""
        for key in list(theirs):
            if (today := self._today(key)) != key:
                value = theirs.pop(key)
                if value is not None and theirs.setdefault(today, value) != value:
                    problems.append(_problem(key, value, f"{today} is {json.dumps(theirs[today])}"))
        return theirs

    def _today(self, key: str) -> str:
        if key in self.keys.earlier:
            return self.keys.earlier[key]
        section, _, name = key.partition(".")
        if section == "rope_scaling" and name:
            return f"rope_parameters.{'rope_type' if name == 'type' else name}"
        return key

    def _with_defaults(self, theirs: Table) -> Table:
        return dict(self.keys.otherwise) | {key: value for key, value in theirs.items() if value is not None}

    def _unknown(self, theirs: Table, ours: Table) -> Iterator[Problem]:
        """It yields a problem for each key that is left over and says anything."""
        size = ours.get("model.hidden_size", 0) // (ours.get("model.attention.num_heads") or 1)
        implied = {"head_dim": size, "rope_parameters.partial_rotary_factor": 1.0}
        for key, value in theirs.items():
            if value not in (None, False, implied.get(key)) and value != []:
                rule = (
                    f"our models have {implied[key]}"
                    if key in implied
                    else "what this changes is not known here"
                )
                yield _problem(key, value, rule)


def _problem(key: str, value: Any, rule: str) -> Problem:
    return Problem(f"{CONFIG_JSON}: {key}", rule, value=shown(json.dumps(value)))
