"""The plan of a run: arithmetic against numbers worked out by hand, and every rule that refuses a layout."""

import tomllib
from itertools import combinations, pairwise
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.partition import partition_layers
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigurationError
from pretrain.optim.config import SGDConfig
from pretrain.plan.memory import bucket_bytes
from pretrain.plan.plan import Plan, plan
from pretrain.plan.rules import layout_problems

SHARDED = {"num_heads": 8, "kind": "mlra", "down_projection": "sharded"}


def make(**sections: dict[str, Any]) -> RunConfig:
    """A small sound configuration with keys of some sections replaced."""
    base: dict[str, dict[str, Any]] = {
        "run": {"name": "t", "steps": 100},
        "model": {
            "num_layers": 4,
            "hidden_size": 64,
            "vocabulary_size": 1000,
            "attention": {"num_heads": 8},
        },
        "data": {
            "sources": [{"path": "x"}],
            "sequence_length": 32,
            "micro_batch_size": 2,
            "global_batch_size": 48,
        },
        "optimizer": {"learning_rate": 1e-3},
    }
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values}
    return RunConfig.model_validate(base)


def test_batch_equation() -> None:
    planned = plan(make(parallel={"tensor": 2, "pipeline": 2}), 12)
    assert (planned.tensor, planned.pipeline, planned.data) == (2, 2, 3)
    assert (planned.batch.micro, planned.batch.accumulation, planned.batch.data) == (2, 8, 3)
    assert (planned.batch.samples, planned.batch.tokens) == (48, 48 * 32)
    assert planned.tokens == 100 * 48 * 32


def test_parameters_of_gpt2_small() -> None:
    config = make(
        model={
            "num_layers": 12,
            "hidden_size": 768,
            "vocabulary_size": 50257,
            "vocabulary_multiple": 1,
            "positions": "learned",
            "attention": {"num_heads": 12},
        },
        data={"sequence_length": 1024},
    )
    counts = plan(config, 1).parameters
    assert counts.total == 124_439_808  # the published model, openai-community/gpt2
    assert counts.parts["embedding"] == 50257 * 768
    assert counts.parts["positions"] == 1024 * 768
    assert counts.parts["head"] == 0


def test_parameters_of_a_modern_block() -> None:
    config = make(
        model={
            "num_layers": 3,
            "attention": {"num_heads": 8, "num_key_value_heads": 2},
            "activation": "swiglu",
            "ffn_hidden_size": 176,
            "normalization": "rms_norm",
            "bias": False,
            "tied_embeddings": False,
        }
    )
    counts = plan(config, 1).parameters
    assert counts.parts["attention"] == 3 * (64 * (64 + 2 * 16) + 64 * 64)
    assert counts.parts["feed_forward"] == 3 * 3 * 64 * 176
    assert counts.parts["norms"] == (2 * 3 + 1) * 64
    assert counts.parts["embedding"] == counts.parts["head"] == 1024 * 64
    assert counts.non_embedding == counts.total - counts.parts["embedding"]


def test_flops_count_head_and_attention_but_not_the_look_up() -> None:
    config = make(model={"bias": False})
    block = 4 * 64 * 64 + 2 * 4 * 64 * 64
    expected = 6 * (4 * block + 1024 * 64) + 12 * 4 * 64 * 32
    assert plan(config, 1).flops_per_token == expected


@given(blocks=st.integers(1, 60), stages=st.integers(1, 60))
def test_stages_cover_all_layers_evenly(blocks: int, stages: int) -> None:
    costs = [0] * 2 + [7 * 10**15] * blocks + [0] * 2
    if stages > blocks:
        with pytest.raises(ValueError, match="cannot be cut"):
            partition_layers(costs, stages)
        return
    boundaries = partition_layers(costs, stages)
    sizes = [after - before for before, after in pairwise(boundaries)]
    sizes[0] -= 2
    sizes[-1] -= 2
    assert (boundaries[0], boundaries[-1], len(boundaries)) == (0, blocks + 4, stages + 1)
    assert sum(sizes) == blocks
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


@given(costs=st.lists(st.integers(1, 9), min_size=1, max_size=9), data=st.data())
def test_no_other_cut_has_a_cheaper_costliest_stage(costs: list[int], data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, len(costs)))

    def most(boundaries: tuple[int, ...]) -> int:
        return max(sum(costs[first:last]) for first, last in pairwise(boundaries))

    cuts = combinations(range(1, len(costs)), stages - 1)
    boundaries = partition_layers(costs, stages)
    assert list(boundaries) == sorted(set(boundaries))
    assert most(boundaries) == min(most((0, *cut, len(costs))) for cut in cuts)


@pytest.mark.parametrize("tied", [False, True])
def test_stages_and_tensor_ranks_hold_the_whole_model_once(tied: bool) -> None:
    config = make(parallel={"tensor": 2, "pipeline": 2}, model={"tied_embeddings": tied})
    planned = plan(config, 4)
    layers = config.model.outline(config.data).layers
    copies = sum(shape.size for layer in layers for shape in layer.parameters if shape.sharded is None)
    copies += planned.parameters.parts["embedding"] if tied else 0  # the last stage has the table, too
    assert sum(2 * stage.parameters for stage in planned.stages) == planned.parameters.total + copies
    assert [stage.blocks for stage in planned.stages] == [2, 2]


def memory(stage: int, data: int, dtype: str = "bf16", **model: Any) -> Plan:
    config = make(parallel={"zero_stage": stage}, precision={"dtype": dtype}, model=model)
    return plan(config, data)


def test_model_states_by_zero_stage() -> None:
    total = memory(0, 1).parameters.total
    expected = {0: (2, 2, 12), 1: (2, 4, 3), 2: (2, 1, 3), 3: (0.5, 1, 3)}
    for stage, bytes_each in expected.items():
        states = memory(stage, 4).memory
        found = (states.weights, states.gradients, states.optimizer)
        assert found == tuple(int(each * total) for each in bytes_each), stage
    assert memory(0, 1, "fp32").memory.optimizer == 8 * total


@pytest.mark.parametrize(
    ("layers", "stage", "dtype", "per_parameter", "alone"),
    [
        (2, 1, "fp32", 4, 4),
        (2, 2, "bf16", 2, 2),
        (2, 1, "bf16", 6, 2),
        (2, 0, "fp32", 4, 0),
        (200, 1, "bf16", 2, 2),
    ],
)
def test_buckets(layers: int, stage: int, dtype: str, per_parameter: int, alone: int) -> None:
    """200 layers have 6e8 parameters: what is reduced at once ends at 5e8. One data rank `alone` needs less."""
    config = make(
        parallel={"zero_stage": stage},
        precision={"dtype": dtype},
        model={"num_layers": layers, "hidden_size": 512},
    )
    planned = plan(config, 2)
    parameters, zero = planned.parameters.total, planned.deepspeed["zero_optimization"]
    assert (parameters > 500_000_000) == (layers == 200)
    assert bucket_bytes(config, zero, parameters, 2, 0) == per_parameter * parameters
    assert bucket_bytes(config, zero, parameters, 1, 0) == alone * parameters
    assert zero["reduce_bucket_size"] == min(parameters, 500_000_000)
    memory = planned.memory
    beside = stage == 2 or (stage, dtype) == (1, "fp32")
    expected = per_parameter * parameters - (0 if beside else memory.activations)
    assert memory.buckets == max(expected, 0)


@pytest.mark.parametrize(
    ("optimizer", "kept"),
    [
        ({"kind": "sgd", "momentum": 0.9}, 1),
        ({"kind": "sgd", "momentum": 0.0}, 0),
        ({"kind": "lars"}, 1),
        ({"kind": "lars", "momentum": 0.0}, 0),
        ({"kind": "lamb"}, 2),
        ({"kind": "adagrad"}, 1),
    ],
)
def test_the_state_of_optimizers(optimizer: dict[str, Any], kept: int) -> None:
    """4 bytes of each number that is kept of a weight, and of master weights, if they are not the model's."""
    for stage, data, dtype, masters in [(0, 1, "fp32", 0), (0, 1, "bf16", 1), (1, 4, "fp32", 1)]:
        config = make(parallel={"zero_stage": stage}, precision={"dtype": dtype}, optimizer=optimizer)
        planned = plan(config, data)
        assert planned.memory.optimizer == 4 * (kept + masters) * planned.parameters.total // data


@pytest.mark.parametrize(
    ("section", "steps"),
    [
        ({"rho": 0.05}, 1000),
        ({"rho": 0.05, "every_steps": 4}, 250),
        ({"rho": 0.05, "every_steps": 4, "from_step": 500}, 126),
        ({"rho": 0.05, "every_steps": 4, "from_step": 501}, 125),
        ({"every_steps": 4}, 0),
        ({"rho": 0.05, "from_step": 1001}, 0),
        ({}, 0),
    ],
)
def test_sharpness_aware_steps(section: dict[str, Any], steps: int) -> None:
    """They take two passes, and the second one a copy of what the optimizer moves."""
    for stage, data in [(0, 1), (1, 4)]:
        config = make(
            run={"steps": 1000},
            parallel={"zero_stage": stage},
            precision={"dtype": "fp32"},
            optimizer={"sharpness_aware": section},
        )
        planned, ascent = plan(config, data), config.optimizer.sharpness_aware
        assert planned.sharpness_aware_steps == sum(map(ascent.applies, range(1, 1001))) == steps
        assert planned.passes == 1 + steps / 1000
        kept = 2 + (stage > 0) + (steps > 0)
        assert planned.memory.optimizer == 4 * kept * planned.parameters.total // data
        told = [text for text in planned.warnings if text.startswith("no step is sharpness-aware")]
        assert len(told) == bool(section and not steps)


def test_activations_of_one_block_by_hand() -> None:
    """b s h = 2 x 32 x 64; whole: 4; over t = 2: q, k, v, attention output (4), GELU in and out (8); bf16."""
    numbers = 2 * 32 * 64
    logits = 2 * 32 * (1024 // 2) * 2
    config = make(parallel={"tensor": 2}, model={"num_layers": 1}, data={"global_batch_size": 2})
    assert plan(config, 2).memory.activations == numbers * 2 * (4 + (4 + 8) // 2) + logits


@pytest.mark.parametrize(
    ("model", "whole"), [({"attention": {**SHARDED, "rank": 16}}, 4 + 3 / 4), ({"norm_placement": "none"}, 2)]
)
def test_activations_with_latents_and_without_norms(model: dict[str, Any], whole: float) -> None:
    """Three latents of a quarter of h on every rank; without norms only the inputs of the sub-layers."""
    config = make(parallel={"tensor": 2}, model={"num_layers": 1, **model}, data={"global_batch_size": 2})
    logits = 2 * 32 * (1024 // 2) * 2
    assert plan(config, 2).memory.activations == 2 * 32 * 64 * 2 * (whole + (4 + 8) / 2) + logits


def test_checkpointing_keeps_inputs_and_one_block() -> None:
    plain, recomputed = memory(1, 1).memory, memory(1, 1, activation_checkpointing=True).memory
    numbers, logits = 2 * 32 * 64, 2 * 32 * 1024 * 2
    block = (plain.activations - logits) // 4
    assert recomputed.activations == 4 * numbers * 2 + block + logits


def test_first_stage_keeps_more_micro_batches() -> None:
    planned = plan(make(parallel={"pipeline": 4}), 4)
    logits = 2 * 32 * 1024 * 2
    kept = [stage.memory.activations for stage in planned.stages]
    kept[-1] -= logits
    assert kept == [4 * kept[3], 3 * kept[3], 2 * kept[3], kept[3]]


REFUSED: list[tuple[dict[str, dict[str, Any]], int, str, str]] = [
    ({"parallel": {"tensor": 2, "pipeline": 2}}, 6, "parallel", "4 must divide the number of ranks, 6"),
    ({"parallel": {"pipeline": 2, "zero_stage": 2}}, 2, "parallel.zero_stage", "0 or 1 with pipeline"),
    ({"parallel": {"pipeline": 2, "zero_stage": 3}}, 2, "parallel.zero_stage", "0 or 1 with pipeline"),
    ({"parallel": {"pipeline": 2, "zero_stage": 0}}, 2, "parallel.zero_stage", "cannot load"),
    ({"parallel": {"pipeline": 8}}, 8, "parallel.pipeline", "exceed 4, the blocks"),
    ({"data": {"global_batch_size": 50}}, 4, "data.global_batch_size", "2 x 4 data-parallel ranks = 8"),
    ({"model": {"attention": {"num_heads": 7}}}, 1, "model.hidden_size", "num_heads = 7"),
    ({"model": {"hidden_size": 72, "attention": {"num_heads": 8}}}, 1, "model.hidden_size", "odd size 9"),
    (
        {"model": {"attention": {"num_heads": 8, "num_key_value_heads": 3}}},
        1,
        "model.attention.num_key_value_heads",
        "must divide num_heads = 8",
    ),
    (
        {"parallel": {"tensor": 4}, "model": {"attention": {"num_heads": 8, "num_key_value_heads": 2}}},
        4,
        "model.attention.num_key_value_heads",
        "multiple of parallel.tensor = 4",
    ),
    (
        {"parallel": {"tensor": 4}, "model": {"attention": {"num_heads": 2}}},
        4,
        "model.attention.num_heads",
        "multiple of parallel.tensor = 4",
    ),
    ({"parallel": {"tensor": 4}, "model": {"ffn_hidden_size": 250}}, 4, "model.ffn_hidden_size", "= 4"),
    (
        {"parallel": {"tensor": 8}, "model": {"vocabulary_multiple": 4, "vocabulary_size": 1004}},
        8,
        "model.vocabulary_multiple",
        "pads the vocabulary to 1004",
    ),
    (
        {"parallel": {"tensor": 4}, "model": {"attention": {**SHARDED, "rank": 18}}},
        4,
        "model.attention.rank",
        "multiple of parallel.tensor = 4",
    ),
    ({"schedule": {"warmup_steps": 100}}, 1, "schedule.warmup_steps", "run.steps = 100"),
    (
        {"schedule": {"kind": "wsd", "warmup_steps": 50, "decay_steps": 60}},
        1,
        "schedule.decay_steps",
        "after the warmup",
    ),
    (
        {"schedule": {"kind": "wsd", "warmup_steps": 85}},
        1,
        "schedule.decay_steps",
        "is a fifth of that, 20, if not given",
    ),
    (
        {"schedule": {"warmup_steps": 50, "decay_steps": 50}},
        1,
        "schedule.decay_steps",
        "must come after schedule.warmup_steps = 50",
    ),
    ({"schedule": {"kind": "step"}}, 1, "schedule.milestones", "must be given, or step_every"),
    (
        {"schedule": {"kind": "step", "step_every": 9, "milestones": [9]}},
        1,
        "schedule.milestones",
        "and not both",
    ),
    ({"schedule": {"kind": "step", "milestones": [50, 50]}}, 1, "schedule.milestones", "must rise"),
    (
        {"schedule": {"kind": "step", "milestones": [20, 50], "warmup_steps": 20}},
        1,
        "schedule.milestones",
        "behind schedule.warmup_steps = 20 and before run.steps = 100",
    ),
    ({"schedule": {"kind": "step", "milestones": [0]}}, 1, "schedule.milestones", "must put steps behind"),
    ({"schedule": {"kind": "step", "milestones": [100]}}, 1, "schedule.milestones", "before run.steps = 100"),
    (
        {"schedule": {"kind": "step", "step_every": 80, "warmup_steps": 20}},
        1,
        "schedule.step_every",
        "before run.steps = 100",
    ),
    ({"schedule": {"step_every": 10}}, 1, "schedule.step_every", 'is of kind "step" alone'),
    ({"schedule": {"kind": "wsd", "milestones": [10]}}, 1, "schedule.milestones", 'of kind "wsd"'),
    (
        {"checkpoint": {"every_steps": 10, "keep_every": 25}},
        1,
        "checkpoint.keep_every",
        "multiple of every_steps = 10",
    ),
    (
        {"optimizer": {"kind": "sgd", "nesterov": True, "momentum": 0.0}},
        1,
        "optimizer.nesterov",
        "false without momentum",
    ),
    (
        {"data": {"sources": [{"path": "x", "weight": 10_000}, {"path": "y"}]}},
        1,
        "data.sources[1].weight",
        "must be at least 0.001 of the sum of all weights, 10001",
    ),
    (
        {"model": {"compile": True, "attention": {"num_heads": 4, "dropout": 0.1}}},
        1,
        "model.attention.dropout",
        "must be 0 with model.compile = true",
    ),
]


@pytest.mark.parametrize(("sections", "world_size", "key", "rule"), REFUSED)
def test_what_cannot_work_is_refused_with_a_reason_and_a_remedy(
    sections: dict[str, dict[str, Any]], world_size: int, key: str, rule: str
) -> None:
    problems = {problem.key: problem for problem in layout_problems(make(**sections), world_size)}
    assert rule in problems[key].rule
    assert problems[key].remedy.startswith("for example")
    with pytest.raises(ConfigurationError, match=f"on {world_size} rank"):
        plan(make(**sections), world_size)


@pytest.mark.parametrize("warmup", [0, 60, 90])
def test_the_steps_that_a_rule_suggests_fit(warmup: int) -> None:
    schedule: dict[str, Any] = {"kind": "step", "warmup_steps": warmup}
    (problem,) = layout_problems(make(schedule=schedule), 1)
    milestones, every = problem.remedy.removeprefix("for example ").split(", or ")
    assert layout_problems(make(schedule={**schedule, **tomllib.loads(milestones)}), 1) == []
    assert layout_problems(make(schedule={**schedule, **tomllib.loads(every)}), 1) == []


def test_every_source_without_a_draw_is_told_with_a_weight_that_works() -> None:
    weights = (1, 10_000, 2, 30)
    sources = [{"path": str(weight), "weight": weight} for weight in weights]
    assert [*map(str, layout_problems(make(data={"sources": sources}), 1))] == [
        f"data.sources[{number}].weight = {weights[number]}: must be at least 0.001 of the sum of all weights, 10033, "
        "to be drawn at all; for example 11"
        for number in (0, 2)
    ]
    for number in (0, 2):
        sources[number]["weight"] = 11
    assert layout_problems(make(data={"sources": sources}), 1) == []


def test_of_too_many_sources_some_are_to_be_left_out() -> None:
    (problem,) = layout_problems(make(data={"sources": [{"path": "x"}] * 1001}), 1)
    assert (problem.key, problem.remedy) == ("data.sources[1000].weight", "leave sources out")


def test_all_broken_rules_are_told_at_once() -> None:
    config = make(
        parallel={"tensor": 3, "pipeline": 8, "zero_stage": 2},
        schedule={"warmup_steps": 1000},
        checkpoint={"every_steps": 10, "keep_every": 25},
    )
    assert {problem.key for problem in layout_problems(config, 4)} == {
        "parallel",
        "parallel.zero_stage",
        "parallel.pipeline",
        "model.attention.num_heads",
        "model.attention.num_key_value_heads",
        "model.ffn_hidden_size",
        "model.vocabulary_multiple",
        "schedule.warmup_steps",
        "checkpoint.keep_every",
    }


class Whole(SGDConfig):
    """An optimizer whose update of a matrix is no sum of updates of its entries."""

    needs_whole_matrices: ClassVar[bool] = True


@pytest.mark.parametrize(
    ("tensor", "zero", "keys"),
    [(1, 0, []), (1, 1, ["zero_stage"]), (2, 0, ["tensor"]), (2, 2, ["zero_stage", "tensor"])],
)
def test_what_needs_whole_matrices_gets_them(tensor: int, zero: int, keys: list[str]) -> None:
    config = make(parallel={"tensor": tensor, "zero_stage": zero})
    config = config.model_copy(update={"optimizer": Whole(learning_rate=1e-3)})
    problems = layout_problems(config, 2)
    assert [problem.key for problem in problems] == [f"parallel.{key}" for key in keys]
    assert all("optimizer.kind = sgd, whose update of a matrix needs all of it" in p.rule for p in problems)


def test_updates_without_a_bound_are_told_of() -> None:
    def warnings(**sections: dict[str, Any]) -> tuple[str, ...]:
        return plan(make(run={"steps": 1000}, **sections), 1).warnings

    sgd = {"kind": "sgd"}
    assert warnings() == ()
    assert warnings(optimizer=sgd) == ("updates of sgd have no bound here, so watchdog.reach finds nothing",)
    assert len(warnings(optimizer={"beta1": 0.98})) == 1
    for silent in (
        {"watchdog": {"reach": False}},
        {"watchdog": {"enabled": False}},
        {"probes": {"tev": False}},
    ):
        assert warnings(optimizer=sgd, **silent) == ()


@pytest.mark.parametrize("stage", [0, 1])
def test_pipeline_works_with_the_stages_that_can(stage: int) -> None:
    config = make(parallel={"pipeline": 2, "zero_stage": stage}, precision={"dtype": "fp32"})
    assert layout_problems(config, 4) == []


def test_a_bubble_and_uneven_stages_are_warned_of() -> None:
    long = {"steps": 1000}
    config = make(run=long, parallel={"pipeline": 3}, data={"global_batch_size": 4})
    bubble, uneven = plan(config, 3).warnings
    assert "50% of the time is idle" in bubble  # (3 - 1) / (2 + 3 - 1)
    assert "4 blocks do not divide evenly into 3" in uneven
    assert plan(make(run=long, parallel={"pipeline": 2}), 2).warnings == ()
