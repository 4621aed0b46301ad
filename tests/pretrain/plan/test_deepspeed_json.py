"""The DeepSpeed JSON: accepted by DeepSpeed, and a user's own checked better than DeepSpeed does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS, DeepSpeedConfig
from support.pair_model import pair_config
from support.training import Layout, make_config

from pretrain.config.keys import walk
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigurationError
from pretrain.plan.deepspeed_keys import KNOWN_KEYS, OWNED_KEYS, REFUSED_KEYS
from pretrain.plan.plan import plan


class Recorder(dict[str, Any]):
    """A dictionary that notes which keys are asked for."""

    def __init__(self, content: Any, asked: set[str]) -> None:
        super().__init__(content)
        self.asked = asked

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:
        return self

    def __iter__(self) -> Iterator[str]:
        return iter(list(super().keys()))

    def __copy__(self) -> "Recorder":
        return Recorder(self.items(), self.asked)


def make(path: Path | None = None, **sections: dict[str, Any]) -> RunConfig:
    base: dict[str, Any] = {
        "run": {"name": "t", "steps": 10, "deepspeed_config": path},
        "model": {
            "num_layers": 4,
            "hidden_size": 64,
            "vocabulary_size": 100,
            "attention": {"num_heads": 4},
        },
        "data": {
            "sources": [{"path": "x"}],
            "sequence_length": 8,
            "micro_batch_size": 2,
            "global_batch_size": 24,
        },
        "optimizer": {"learning_rate": 1e-3, "gradient_clipping": 0.5},
        **sections,
    }
    return RunConfig.model_validate(base)


def effective(config: RunConfig, world_size: int = 4) -> dict[str, Any]:
    return plan(config, world_size).deepspeed


def write(folder: Path, text: str) -> Path:
    path = folder / "deepspeed.json"
    path.write_text(text)
    return path


def test_known_keys_are_those_that_deepspeed_reads() -> None:
    asked: set[str] = set()
    DeepSpeedConfig(Recorder({"train_batch_size": 1}, asked))
    assert asked - set(_REMOVED_TOP_LEVEL_CONFIG_KEYS) == KNOWN_KEYS


def test_key_tables_name_keys_that_exist() -> None:
    assert REFUSED_KEYS.keys() <= KNOWN_KEYS
    assert {key.partition(".")[0] for key in OWNED_KEYS} <= KNOWN_KEYS
    assert set(OWNED_KEYS.values()) <= {key for key, _ in walk(RunConfig)}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_accepts_what_is_derived(dtype: str, stage: int) -> None:
    config = make(parallel={"zero_stage": stage, "tensor": 2}, precision={"dtype": dtype})
    accepted = DeepSpeedConfig(effective(config, 2))  # without process groups it assumes one replica
    assert accepted.train_batch_size == 24
    assert accepted.gradient_accumulation_steps == 12
    assert accepted.zero_optimization_stage == stage
    assert accepted.bfloat16_config.enabled == (dtype == "bf16")
    assert accepted.gradient_clipping == 0.5
    assert accepted.bfloat16_config.check_grad_overflow


def test_users_json_is_merged_over_the_derived_one(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """{
          // comments are allowed
          "train_batch_size": "auto",
          "gradient_clipping": 0.5,
          "zero_optimization": {"stage": 1, "overlap_comm": true, "reduce_bucket_size": "auto"},
          "wall_clock_breakdown": true
        }""",
    )
    merged, derived = effective(make(path)), effective(make())
    assert merged["zero_optimization"] == {
        "stage": 1,
        "overlap_comm": True,
        "reduce_bucket_size": derived["zero_optimization"]["reduce_bucket_size"],
    }
    assert merged["wall_clock_breakdown"] is True
    assert merged["train_batch_size"] == 24
    assert merged.keys() - derived.keys() == {"wall_clock_breakdown"}


def test_unknown_foreign_and_contradicting_keys_are_told_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '{"gradient_clipp1ng": 1, "elasticity": {}, "optimizer": {"type": "Adam"}, "fp16": {"enabled": true},'
        ' "train_batch_size": 32, "bf16": {"enabled": false}, "zero_optimization": {"stage": 2}}',
    )
    with pytest.raises(ConfigurationError, match="does not fit") as caught:
        effective(make(path))
    told = {problem.key: f"{problem.rule}; {problem.remedy}" for problem in caught.value.problems}
    assert set(told) == {
        "gradient_clipp1ng",
        "elasticity",
        "optimizer",
        "fp16",
        "train_batch_size",
        "bf16.enabled",
        "zero_optimization.stage",
    }
    assert "did you mean gradient_clipping?" in told["gradient_clipp1ng"]
    assert "data.global_batch_size" in told["train_batch_size"]
    assert "24" in told["train_batch_size"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"bf16": {}, "bf16": {}}', "bf16 stands there more than once"),
        ('{"bf16": ', ":1: not valid JSON"),
        ("[1]", "must hold a JSON object"),
        ('{"zero_optimization": {"reduce_bucket_size": 1e999}}', "infinity"),
    ],
)
def test_broken_json_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        effective(make(write(tmp_path, text)))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"zero_optimization": true}', "zero_optimization"),
        ('{"zero_optimization": {"reduce_bucket_size": "5e8"}}', "zero_optimization.reduce_bucket_size"),
        ('{"zero_optimization": {"reduce_bucket_size": 0}}', "zero_optimization.reduce_bucket_size"),
        (
            '{"zero_optimization": {"stage3_max_reuse_distance": "much"}}',
            "zero_optimization.stage3_max_reuse_distance",
        ),
        ('{"zero_optimization": {"reduce_bucket_size": 1.5}}', "zero_optimization.reduce_bucket_size"),
        ('{"zero_optimization": {"overlap_comm": 1}}', "zero_optimization.overlap_comm"),
    ],
)
def test_values_that_estimates_go_by_are_checked(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        effective(make(write(tmp_path, text)))
    assert [problem.key for problem in caught.value.problems] == [key]


def test_missing_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"absent\.json: cannot be read"):
        effective(make(tmp_path / "absent.json"))


@pytest.mark.parametrize(
    ("layout", "tensors", "uncut"),
    [
        (Layout(tensor=2, pipeline=2), 2, True),
        (Layout(tensor=2, pipeline=2), 1, False),
        (Layout(tensor=2), 2, False),
        (Layout(pipeline=2), 2, False),
    ],
)
def test_several_tensors_between_stages_are_not_cut(layout: Layout, tensors: int, uncut: bool) -> None:
    config = pair_config(layout, {}, {}) if tensors == 2 else make_config(layout)
    assert ("pipeline" in plan(config, layout.world_size).deepspeed) is uncut
