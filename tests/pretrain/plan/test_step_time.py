"""The estimate of a step's time is arithmetic from declared rates: here beside numbers worked out by hand, and beside
published measurements."""

from typing import Any

import pytest
from support.training import Layout, make_config

from pretrain.config.run import RunConfig
from pretrain.errors import ConfigurationError
from pretrain.plan.devices import DEVICES, device_rates
from pretrain.plan.plan import plan
from pretrain.plan.step_time import Links, StepTime, step_time, utilisation
from pretrain.plan.traffic import Message

FREE = [
    "memory_gb_per_second=1e30",
    "link_gb_per_second=1e30",
    "network_gb_per_second=1e30",
    "link_microseconds=0",
    "network_microseconds=0",
    "host_microseconds=0",
]
"""Nothing but products of matrices takes time."""


def gpt(layers: int, hidden: int, heads: int, **sections: dict[str, Any]) -> RunConfig:
    """A GPT of Megatron's: vocabulary 51,200, sequences of 2,048 tokens, all blocks recomputed."""
    return RunConfig.model_validate(
        {
            "run": {"name": "t", "steps": 100},
            "model": {
                "num_layers": layers,
                "hidden_size": hidden,
                "vocabulary_size": 51200,
                "positions": "learned",
                "attention": {"num_heads": heads},
                "activation_checkpointing": True,
            },
            "optimizer": {"learning_rate": 1e-4},
            **sections,
            "data": {"sources": [{"path": "x"}], "sequence_length": 2048, **sections["data"]},
        }
    )


def estimate(layout: Layout, *rates: str, **model: Any) -> tuple[StepTime, float]:
    """Time and utilisation on A100s."""
    config = make_config(layout, **model)
    planned, device = plan(config, layout.world_size), device_rates("a100", rates)
    time = step_time(config, planned, device)
    return time, utilisation(config, planned, device, time.total)


def test_products_alone_run_at_their_efficiency() -> None:
    time, used = estimate(Layout(accumulation=3, dtype="bf16"), *FREE)
    assert time.bound == "compute"
    assert used == pytest.approx(0.7)
    assert estimate(Layout(accumulation=3, dtype="bf16"), *FREE, "matmul_efficiency=0.5")[1] == pytest.approx(
        0.5
    )


def test_recomputed_blocks_pass_forward_twice() -> None:
    config = make_config(Layout(checkpointing=True))
    outline = config.model.outline(config.data)
    blocks = sum(layer.flops for layer in outline.layers if layer.is_block)
    share = blocks / sum(layer.flops for layer in outline.layers)
    (time, _), (plain, _) = estimate(Layout(checkpointing=True), *FREE), estimate(Layout(), *FREE)
    assert time.compute / plain.compute == pytest.approx(1 + share / 3)


def test_what_every_tensor_rank_has_whole_it_computes_whole() -> None:
    """Of low-rank attention D is on every rank, unless it is sharded."""
    attention = {"kind": "mlra", "num_heads": 4}
    one, _ = estimate(Layout(), *FREE, attention=attention)
    two, _ = estimate(Layout(tensor=2), *FREE, attention=attention)
    cut, _ = estimate(Layout(tensor=2), *FREE, attention={**attention, "down_projection": "sharded"})
    config = make_config(Layout(), attention=attention)
    down = 6 * 4 * (3 * 16 * 32) * 32 * 12 / (19.5e12 * 0.7)
    assert config.model.outline(config.data).layers[2].repeated_flops == 6 * 3 * 16 * 32 * 32
    assert two.compute == pytest.approx((one.compute - down) / 2 + down)
    assert cut.compute == pytest.approx(one.compute / 2)


def test_a_pipeline_waits_as_its_schedule_does() -> None:
    """p - 1 of m + p - 1 slots where stages are alike: blocks cost far more than the rest here."""
    model = {"hidden_size": 512, "vocabulary_size": 8, "vocabulary_multiple": 1}
    for stages, micro_batches in ((2, 3), (4, 3), (4, 12)):
        time, _ = estimate(Layout(pipeline=stages, accumulation=micro_batches), *FREE, **model)
        bubble = (stages - 1) / (micro_batches + stages - 1)
        assert time.bubble / time.total == pytest.approx(bubble, rel=0.01)


@pytest.mark.parametrize(
    ("kind", "tensor", "data", "axis", "seconds"),
    [
        # 1e9 bytes at 80 % of 300 GB/s within a node, and 3 microseconds a hop
        ("all_reduce", 8, 1, "tensor", 2 * 7 / 8 / 240 + 6 * 3e-6),
        ("all_gather", 8, 1, "tensor", 7 / 8 / 240 + 7 * 3e-6),
        ("reduce_scatter", 1, 4, "data", 3 / 4 / 240 + 3 * 3e-6),
        # at 80 % of 25 GB/s for each rank of the group on a node beyond it, and 5 microseconds
        ("all_reduce", 8, 16, "data", 2 * 15 / 16 / 20 + 8 * 5e-6),
        ("all_reduce", 4, 16, "data", 2 * 15 / 16 / 40 + 2 * 3e-6 + 6 * 5e-6),
        ("all_reduce", 1, 16, "data", 2 * 15 / 16 / 160 + 6 * 3e-6 + 2 * 5e-6),
        ("all_reduce", 16, 1, "tensor", 2 * 15 / 16 / 160 + 6 * 3e-6 + 2 * 5e-6),
        ("all_gather", 1, 16, "data", 15 / 16 / 160 + 14 * 3e-6 + 5e-6),
        ("reduce_scatter", 8, 16, "data", 15 / 16 / 20 + 15 * 5e-6),
        ("send", 2, 2, "pipeline", 1 / 240 + 3e-6),
        ("send", 2, 4, "pipeline", 1 / 20 + 5e-6),
    ],
)
def test_messages_take_what_rates_say(kind: Any, tensor: int, data: int, axis: Any, seconds: float) -> None:
    pipeline = 2 if axis == "pipeline" else 1
    config = gpt(
        2,
        64,
        16,
        parallel={"tensor": tensor, "pipeline": pipeline},
        data={"micro_batch_size": 1, "global_batch_size": 2 * data},
    )
    links = Links(DEVICES["a100"], plan(config, tensor * data * pipeline))
    assert links.seconds(Message(axis, kind, 10**9, 1)) == pytest.approx(seconds)


def test_sums_of_gradients_hide_behind_the_product_beside_them() -> None:
    hidden, _ = estimate(Layout(tensor=2), *FREE, "link_gb_per_second=300", "fp32_tflops=1e-6")
    shown, _ = estimate(Layout(tensor=2), *FREE, "link_gb_per_second=300", "fp32_tflops=1e9")
    assert 0 < hidden.tensor < 0.55 * shown.tensor


@pytest.mark.parametrize(
    ("layout", "rate", "bound"),
    [
        (Layout(), "memory_gb_per_second=1", "memory"),
        (Layout(tensor=2), "link_gb_per_second=0.01", "tensor"),
        (Layout(pipeline=2, accumulation=4), "link_gb_per_second=0.001", "pipeline"),
        (Layout(data=2), "link_gb_per_second=0.01", "data"),
        (Layout(data=2), "host_microseconds=1e6", "agreement"),
        (Layout(pipeline=4), "link_microseconds=0", "bubble"),
    ],
    ids=lambda value: str(value),
)
def test_it_names_what_takes_longest(layout: Layout, rate: str, bound: str) -> None:
    assert estimate(layout, *FREE, rate)[0].bound == bound


MEASURED = [
    # billions of parameters, heads, hidden size, layers, tensor, pipeline, devices, batch, TFLOP/s a device
    (1.7, 24, 2304, 24, 1, 1, 32, 512, 137),
    (3.6, 32, 3072, 30, 2, 1, 64, 512, 138),
    (7.5, 32, 4096, 36, 4, 1, 128, 512, 142),
    (18.4, 48, 6144, 40, 8, 1, 256, 1024, 135),
    (39.1, 64, 8192, 48, 8, 2, 512, 1536, 138),
    (76.1, 80, 10240, 60, 8, 4, 1024, 1792, 140),
    (145.6, 96, 12288, 80, 8, 8, 1536, 2304, 148),
    (310.1, 128, 16384, 96, 8, 16, 1920, 2160, 155),
    (529.6, 128, 20480, 105, 8, 35, 2520, 2520, 163),
    (1008.0, 160, 25600, 128, 8, 64, 3072, 3072, 163),
]
"""Narayanan et al. 2021, arXiv 2104.04473, table 1: Megatron-LM on A100 80GB, recomputed FLOPs counted."""


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: f"{row[0]}B")
def test_beside_what_megatron_measured(row: tuple[float, ...]) -> None:
    """From 4 % too slow to 37 % too fast, as docs/scaling.md says; the paper tells no micro-batch, so the best is taken
    of those that fit."""
    _, heads, hidden, layers, tensor, pipeline, devices, batch, measured = (int(n) for n in row)
    best = 0.0
    for micro in (1, 2, 4, 8, 16):
        if batch * tensor * pipeline % (micro * devices):
            continue
        config = gpt(
            layers,
            hidden,
            heads,
            parallel={"tensor": tensor, "pipeline": pipeline, "zero_stage": 1},
            data={"micro_batch_size": micro, "global_batch_size": batch},
        )
        planned, device = plan(config, devices), device_rates("a100", ["host_microseconds=0"])
        if planned.memory.total < 1e9 * device.memory_gb:
            flops = 96 * batch * 2048 * layers * hidden**2
            flops *= 1 + 2048 / (6 * hidden) + 51200 / (16 * layers * hidden)
            best = max(best, flops / devices / step_time(config, planned, device).total / 1e12)
    assert 0.95 < best / measured < 1.4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "gpus_per_nod=4",
            "--rate gpus_per_nod=4: there is no rate gpus_per_nod; did you mean gpus_per_node?",
        ),
        ("network=fast", "--rate network=fast: there is no rate network; known are bf16_tflops"),
        ("memory_gb=much", "--rate memory_gb=much: must be a number, for example memory_gb=80"),
        ("matmul_efficiency=2", "matmul_efficiency = 2.0: must be at most 1"),
        ("network_gb_per_second=nan", "network_gb_per_second"),
        ("gpus_per_node=4.5", "gpus_per_node = 4.5: must be a whole number"),
    ],
)
def test_rates_that_cannot_be_are_refused(change: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        device_rates("a100", [change])
    assert message in str(caught.value)
