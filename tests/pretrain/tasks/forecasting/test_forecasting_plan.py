"""Plans of models that forecast: sizes worked out by hand, and what is refused."""

from typing import Any

import pytest
from support.forecasting_model import forecasting_config
from support.training import Layout

from pretrain.errors import ConfigurationError
from pretrain.plan.plan import plan

L, D, H = 24, 3, 8


def test_flops_of_samformer_by_hand() -> None:
    """Two heads of 5: queries, keys, values and output for each of D channels, then the D x D attention of 2 x 5
    numbers, two products of 2 FLOPs forward and twice that backward."""
    config = forecasting_config(Layout(), {"num_layers": 1})
    norm, block, final, head = config.model.outline(config.data).layers
    assert [norm.size, final.size] == [2 * D, 0]
    assert block.size == 3 * (10 * L + 10) + 10 * L + L
    assert block.flops == 6 * 4 * 10 * L * D + 2 * 6 * 10 * D * D
    assert head.flops == 6 * H * L * D
    assert plan(config, 1).flops_per_token == (block.flops + head.flops) / L


def test_shared_layers_cost_what_they_are_applied() -> None:
    outlines = [
        config.model.outline(config.data)
        for shared in (True, False)
        for config in [forecasting_config(Layout(), {"kind": "tsmixer", "share_layers": shared})]
    ]
    assert [len(outline.blocks) for outline in outlines] == [1, 4]
    flops = [sum(layer.flops for layer in outline.layers) for outline in outlines]
    assert flops[0] == flops[1]


@pytest.mark.parametrize(
    ("layout", "model", "told"),
    [
        (
            Layout(tensor=2),
            {"num_heads": 1},
            "model.num_heads = 1: must be a multiple of parallel.tensor = 2",
        ),
        (Layout(tensor=2), {"kind": "tsmixer"}, "parallel.tensor = 2: must be 1 with model.kind = tsmixer"),
        (Layout(tensor=2), {"kind": "dlinear"}, "parallel.tensor = 2: must be 1 with model.kind = dlinear"),
        (Layout(pipeline=2), {"kind": "linear"}, "parallel.pipeline = 2: must not exceed 1, the blocks"),
        (Layout(), {"kind": "dlinear", "moving_average": 24}, "model.moving_average = 24: must be odd"),
        (
            Layout(data=2, zero=3),
            {"reparametrization": "sigma"},
            "parallel.zero_stage = 3: must be 0, 1 or 2",
        ),
        (
            Layout(),
            {"frozen_attention": True, "reparametrization": "sigma"},
            "model.frozen_attention = true: keeps the weights of attention, but the gammas",
        ),
    ],
)
def test_what_cannot_work_is_told(layout: Layout, model: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        plan(forecasting_config(layout, model), layout.world_size)
    assert told in str(error.value)


def test_windows_and_channels_bind_a_checkpoint() -> None:
    config = forecasting_config(Layout(), {"dropout": 0.1})
    shape = config.model.shape(config.data)
    assert shape.items() >= {"channels": D, "lookback": L, "horizon": H, "head_size": 5}.items()
    assert not {"dropout", "frozen_attention", "activation_checkpointing"} & shape.keys()


def test_data_with_other_columns_is_told() -> None:
    config = forecasting_config(Layout())
    (found,) = config.model.data_problems(config.data, {"channels": 7})
    assert str(found).startswith("data.channels = 3: the data has 7; set data.channels = 7")
