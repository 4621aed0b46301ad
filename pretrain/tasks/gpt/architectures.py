"""These are the decoders of Hugging Face's that hold a GPT: GPT-2, GPT-NeoX and Llama.

Rotary positions need no permutation: ours turn the pairs (x_i, x_{i+K/2}) of a head, as theirs do.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pretrain.models.attention import projected_rows
from pretrain.models.sizes import block_name
from pretrain.tasks.architecture import ByHead, TensorMap, Transposed, Unstacked
from pretrain.tasks.gpt.config import GPTConfig
from pretrain.tasks.gpt.stock_decoder import Keys, StockDecoder

NORMS = {
    "attention_norm": ("ln_1", "input_layernorm"),
    "feed_forward_norm": ("ln_2", "post_attention_layernorm"),
}
"""Norms of a block -> what GPT-2, and what the others call them."""


class GPT2(StockDecoder):
    """Learned positions, LayerNorm and GELU (Radford et al. 2019); its linear layers hold inputs as rows."""

    name, model_type, model_class, has_biases = "GPT-2", "gpt2", "GPT2LMHeadModel", True
    needs: ClassVar[Mapping[str, Any]] = {
        "positions": "learned",
        "normalization": "layer_norm",
        "activation": "gelu",
    }
    keys = Keys(
        same={
            "n_layer": "model.num_layers",
            "n_embd": "model.hidden_size",
            "n_head": "model.attention.num_heads",
            "n_inner": "model.ffn_hidden_size",
            "n_positions": "data.sequence_length",
            "vocab_size": "model.vocabulary_size",
            "layer_norm_epsilon": "model.normalization_epsilon",
            "initializer_range": "model.init_std",
            "embd_pdrop": "model.dropout",
            "resid_pdrop": "model.dropout",
            "attn_pdrop": "model.attention.dropout",
            "tie_word_embeddings": "model.tied_embeddings",
        },
        fixed={
            "activation_function": "gelu",
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
        otherwise={
            "n_inner": None,
            "layer_norm_epsilon": 1e-5,
            "initializer_range": 0.02,
            "embd_pdrop": 0.1,
            "resid_pdrop": 0.1,
            "attn_pdrop": 0.1,
            "tie_word_embeddings": True,
            "activation_function": "gelu_new",
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
        harmless={"n_ctx", "reorder_and_upcast_attn"},
    )
    weightless = (".attn.bias", ".attn.masked_bias")

    def tensors(self, model: GPTConfig) -> list[TensorMap]:
        """It pairs the tensors of a model with biases."""
        return [
            TensorMap("embedding.weight", ("transformer.wte.weight",)),
            TensorMap("positions.positions_SD", ("transformer.wpe.weight",)),
            *(
                pair
                for i in range(model.num_layers)
                for pair in self._block(block_name(i), f"transformer.h.{i}")
            ),
            *both("final_norm.norm", "transformer.ln_f"),
            TensorMap("head.weight", ("lm_head.weight",)),
        ]

    def _block(self, ours: str, theirs: str) -> Iterator[TensorMap]:
        linears = {
            "attention.qkv.linear": "attn.c_attn",
            "attention.output": "attn.c_proj",
            "feed_forward.up": "mlp.c_fc",
            "feed_forward.down": "mlp.c_proj",
        }
        for name, (norm, _) in NORMS.items():
            yield from both(f"{ours}.{name}", f"{theirs}.{norm}")
        for name, linear in linears.items():
            yield Transposed(f"{ours}.{name}.weight", (f"{theirs}.{linear}.weight",))
            yield TensorMap(f"{ours}.{name}.bias", (f"{theirs}.{linear}.bias",))

    def canonical(self, name: str) -> str | None:
        """Files of the first GPT-2s have no prefix."""
        named = name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
        return super().canonical(named)


class GPTNeoX(StockDecoder):
    """Rotary positions, LayerNorm and GELU (Black et al. 2022, arXiv 2204.06745), one branch after the other."""

    name, model_type, model_class, has_biases = "GPT-NeoX", "gpt_neox", "GPTNeoXForCausalLM", True
    needs: ClassVar[Mapping[str, Any]] = {
        "positions": "rotary",
        "normalization": "layer_norm",
        "activation": "gelu",
    }
    keys = Keys(
        same={
            "num_hidden_layers": "model.num_layers",
            "hidden_size": "model.hidden_size",
            "num_attention_heads": "model.attention.num_heads",
            "intermediate_size": "model.ffn_hidden_size",
            "max_position_embeddings": "data.sequence_length",
            "vocab_size": "model.vocabulary_size",
            "layer_norm_eps": "model.normalization_epsilon",
            "initializer_range": "model.init_std",
            "hidden_dropout": "model.dropout",
            "attention_dropout": "model.attention.dropout",
            "tie_word_embeddings": "model.tied_embeddings",
            "rope_parameters.rope_theta": "model.rotary_base",
        },
        fixed={
            "hidden_act": "gelu",
            "use_parallel_residual": False,
            "attention_bias": True,
            "rope_parameters.rope_type": "default",
            "rope_parameters.partial_rotary_factor": 1.0,
        },
        otherwise={
            "layer_norm_eps": 1e-5,
            "initializer_range": 0.02,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            "tie_word_embeddings": False,
            "rope_parameters.rope_theta": 10_000.0,
            "hidden_act": "gelu",
            "use_parallel_residual": True,
            "attention_bias": True,
            "rope_parameters.rope_type": "default",
            "rope_parameters.partial_rotary_factor": 0.25,
        },
        earlier={
            "rotary_emb_base": "rope_parameters.rope_theta",
            "rotary_pct": "rope_parameters.partial_rotary_factor",
        },
    )
    weightless = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")

    def tensors(self, model: GPTConfig) -> list[TensorMap]:
        """It pairs the tensors of a model with biases."""
        heads = model.attention.num_heads
        return [
            TensorMap("embedding.weight", ("gpt_neox.embed_in.weight",)),
            *(
                pair
                for i in range(model.num_layers)
                for pair in self._block(block_name(i), f"gpt_neox.layers.{i}", heads)
            ),
            *both("final_norm.norm", "gpt_neox.final_layer_norm"),
            TensorMap("head.weight", ("embed_out.weight",)),
        ]

    def _block(self, ours: str, theirs: str, heads: int) -> Iterator[TensorMap]:
        linears = {
            "attention.output": "attention.dense",
            "feed_forward.up": "mlp.dense_h_to_4h",
            "feed_forward.down": "mlp.dense_4h_to_h",
        }
        for name, (_, norm) in NORMS.items():
            yield from both(f"{ours}.{name}", f"{theirs}.{norm}")
        for part in ("weight", "bias"):
            stacked = f"{theirs}.attention.query_key_value.{part}"
            yield ByHead(f"{ours}.attention.qkv.linear.{part}", (stacked,), heads)
        for name, linear in linears.items():
            yield from both(f"{ours}.{name}", f"{theirs}.{linear}")

    def canonical(self, name: str) -> str | None:
        """Version 5 of `transformers` calls the head otherwise than its files, and reads either."""
        return super().canonical("embed_out.weight" if name == "lm_head.weight" else name)


class Llama(StockDecoder):
    """Rotary positions, RMSNorm and SwiGLU (Touvron et al. 2023, arXiv 2302.13971), and grouped heads."""

    name, model_type, model_class, has_biases = "Llama", "llama", "LlamaForCausalLM", False
    needs: ClassVar[Mapping[str, Any]] = {
        "positions": "rotary",
        "normalization": "rms_norm",
        "activation": "swiglu",
    }
    keys = Keys(
        same={
            "num_hidden_layers": "model.num_layers",
            "hidden_size": "model.hidden_size",
            "num_attention_heads": "model.attention.num_heads",
            "num_key_value_heads": "model.attention.num_key_value_heads",
            "intermediate_size": "model.ffn_hidden_size",
            "max_position_embeddings": "data.sequence_length",
            "vocab_size": "model.vocabulary_size",
            "rms_norm_eps": "model.normalization_epsilon",
            "initializer_range": "model.init_std",
            "attention_dropout": "model.attention.dropout",
            "attention_bias": "model.bias",
            "mlp_bias": "model.bias",
            "tie_word_embeddings": "model.tied_embeddings",
            "rope_parameters.rope_theta": "model.rotary_base",
        },
        fixed={"hidden_act": "silu", "rope_parameters.rope_type": "default"},
        otherwise={
            "num_key_value_heads": None,
            "rms_norm_eps": 1e-6,
            "initializer_range": 0.02,
            "attention_dropout": 0.0,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "rope_parameters.rope_theta": 10_000.0,
            "hidden_act": "silu",
            "rope_parameters.rope_type": "default",
        },
        earlier={"rope_theta": "rope_parameters.rope_theta"},
        # Products that are taken in pieces come to the same.
        harmless={"pretraining_tp"},
    )
    weightless = (".rotary_emb.inv_freq",)

    def tensors(self, model: GPTConfig) -> list[TensorMap]:
        """It pairs the tensors of a model, with its biases if it has them."""
        return [
            TensorMap("embedding.weight", ("model.embed_tokens.weight",)),
            *(
                pair
                for i in range(model.num_layers)
                for part in ("weight", "bias")
                for pair in self._block(model, block_name(i), f"model.layers.{i}", part)
                if part == "weight" or model.bias
            ),
            TensorMap("final_norm.norm.weight", ("model.norm.weight",)),
            TensorMap("head.weight", ("lm_head.weight",)),
        ]

    def _block(self, model: GPTConfig, ours: str, theirs: str, part: str) -> Iterator[TensorMap]:
        rows = tuple(projected_rows(model).values())
        qkv = tuple(f"{theirs}.self_attn.{name}_proj.{part}" for name in "qkv")
        up = tuple(f"{theirs}.mlp.{name}_proj.{part}" for name in ("gate", "up"))
        if part == "weight":
            for name, (_, norm) in NORMS.items():
                yield TensorMap(f"{ours}.{name}.weight", (f"{theirs}.{norm}.weight",))
        yield Unstacked(f"{ours}.attention.qkv.linear.{part}", qkv, rows)
        yield TensorMap(f"{ours}.attention.output.{part}", (f"{theirs}.self_attn.o_proj.{part}",))
        yield Unstacked(f"{ours}.feed_forward.up.{part}", up, (model.ffn_size, model.ffn_size))
        yield TensorMap(f"{ours}.feed_forward.down.{part}", (f"{theirs}.mlp.down_proj.{part}",))


def both(ours: str, theirs: str) -> Iterator[TensorMap]:
    """It pairs weight and bias of two layers that hold them alike."""
    for part in ("weight", "bias"):
        yield TensorMap(f"{ours}.{part}", (f"{theirs}.{part}",))
