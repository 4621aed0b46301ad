"""Names of what lies in a run folder, `runs/NAME/`. They are stable: scripts and dashboards depend on them."""

CONFIG = "config.toml"
"""The resolved configuration of the last session."""
METRICS = "metrics.jsonl"
"""One line for every optimizer step and for every validation."""
TENSORBOARD = "tensorboard"
LEDGER = "ledger.jsonl"
"""What the run has seen, decided and done."""
CHECKPOINTS = "checkpoints"
"""A folder for each checkpoint, named by its tag, and the file `latest`."""
EVIDENCE = "evidence"
"""A folder for each time that the run has given up: its crash report."""

RUN_LOCK = "run.lock"
"""Held by rank 0 of a run."""
HEARTBEATS = "heartbeats"
"""A file for each rank: its last sign of life."""
STACKS = "stacks"
"""A file for each rank that was asked where it is."""

PROFILES = "profiles"
"""A folder for each profile that was asked for and each rank that has one."""

SUPERVISOR_EVENTS = "supervisor.jsonl"
"""What `surefoot train --supervise` has seen and done."""
SUPERVISED_CONFIG = "supervised.toml"
"""The settings that the supervisor was started with: its launches have these, whatever becomes of the file."""
SUPERVISOR_LOCK = "supervisor.lock"
"""Held by the supervisor."""


def rank_file(rank: int, suffix: str) -> str:
    """It returns the name of a rank's file in `heartbeats` or `stacks`."""
    return f"rank_{rank:05d}.{suffix}"
