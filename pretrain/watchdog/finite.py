"""The judge of a step: pure, fed with what is equal on all ranks, so that all ranks decide alike."""

from pretrain.step import Action, StepReport, TrainState, Verdict

MAX_VETOES_IN_A_ROW = 50
"""A model whose every gradient is non-finite does not come back by itself."""


def judge_finite(report: StepReport, state: TrainState) -> Verdict:
    """Withhold updates from non-finite losses or gradients, and end a run that has nothing else any more."""
    if report.finite:
        return Verdict(Action.PROCEED)
    reason = f"loss {report.loss} and gradient norm {report.gradient_norm} at step {report.step}"
    if state.vetoes_in_a_row >= MAX_VETOES_IN_A_ROW:
        return Verdict(Action.HALT, f"{reason}, non-finite for {state.vetoes_in_a_row + 1} steps in a row")
    return Verdict(Action.VETO, f"non-finite {reason}")
