"""It is only data: the top-level keys of a DeepSpeed 0.19 JSON, which DeepSpeed itself does not check."""

KNOWN_KEYS: frozenset[str] = frozenset(
    {
        "activation_checkpointing",
        "aio",
        "autotuning",
        "bf16",
        "bfloat16",
        "checkpoint",
        "comet",
        "comms_logger",
        "communication_data_type",
        "compile",
        "csv_monitor",
        "data_efficiency",
        "data_types",
        "dataloader_drop_last",
        "datastates_ckpt",
        "disable_allgather",
        "disable_python_gc",
        "dump_state",
        "expert_parallel",
        "flops_profiler",
        "fp16",
        "gradient_accumulation_steps",
        "gradient_allreduce_op",
        "gradient_clipping",
        "gradient_predivide_factor",
        "hybrid_engine",
        "log_level",
        "managed_gradient_accumulation",
        "memory_breakdown",
        "optimizer",
        "pipeline",
        "prescale_gradients",
        "scheduler",
        "seq_parallel_communication_data_type",
        "steps_per_print",
        "tensor_parallel",
        "tensorboard",
        "timers",
        "torch_autocast",
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "use_data_before_expert_parallelism",
        "vocabulary_size",
        "wall_clock_breakdown",
        "wandb",
        "weight_quantization",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "zero_optimization",
    }
)
"""Everything that DeepSpeed 0.19.8 looks up in the JSON."""

OWNED_KEYS: dict[str, str] = {
    "train_batch_size": "data.global_batch_size",
    "train_micro_batch_size_per_gpu": "data.micro_batch_size",
    "gradient_accumulation_steps": "data.global_batch_size",
    "gradient_clipping": "optimizer.gradient_clipping",
    "zero_optimization.stage": "parallel.zero_stage",
    "bf16.enabled": "precision.dtype",
}
"""Keys whose value follows from the configuration, to the key that decides it there."""

REFUSED_KEYS: dict[str, str] = {
    "autotuning": "it would replace the run by a search; choose sizes with `surefoot check`",
    "bfloat16": "it is the old name of bf16; set precision.dtype",
    "data_efficiency": "the data order is exact and resumable only as [data] gives it",
    "expert_parallel": "there are no experts in this model",
    "fp16": "set precision.dtype, which knows fp32 and bf16",
    "hybrid_engine": "it is for inference",
    "managed_gradient_accumulation": "accumulation follows from data.global_batch_size",
    "optimizer": "set [optimizer]",
    "pipeline": "set parallel.pipeline",
    "scheduler": "set [schedule]",
    "tensor_parallel": "set parallel.tensor",
    "torch_autocast": "set precision.dtype",
    "weight_quantization": "it is for inference",
}
"""Keys that DeepSpeed knows but that cannot stand beside the configuration, with the reason."""

ZERO_3_DEFAULTS = {
    "stage3_param_persistence_threshold": 100_000,
    "stage3_max_reuse_distance": 1_000_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
}
"""Of `zero_optimization`, with DeepSpeed's defaults (0.19.8): numbers in a parameter up to which it stays whole; within
which one is kept for its next use; that are gathered at once, ahead of their use."""
