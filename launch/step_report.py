"""`surefoot check` shows what ranks send each other in a step, and about how long a step takes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from launch.plan_report import Rows
from pretrain.config.run import RunConfig
from pretrain.plan.devices import DEVICES, DeviceRates, device_rates
from pretrain.plan.plan import Plan
from pretrain.plan.step_time import HOST_SECONDS, StepTime, block_seconds, step_time, utilisation
from pretrain.plan.traffic import AGREEMENTS, Message, step_traffic
from pretrain.runtime.units import in_units

PARTS = {
    "compute": "matrix products",
    "memory": "all else on the device",
    "tensor": "between tensor-parallel ranks",
    "pipeline": "between pipeline stages",
    "bubble": "waiting for other stages",
    "data": "between data-parallel ranks",
    "agreement": "all ranks, over gloo",
}
"""Parts of a step's time, each with what it goes to."""


@dataclass(frozen=True)
class StepReport:
    """It holds the messages of a step, and its time where a device was named."""

    traffic: tuple[tuple[Message, ...], ...]
    """By pipeline stage."""
    device: str | None = None
    rates: DeviceRates | None = None
    time: StepTime | None = None


def report_step(config: RunConfig, plan: Plan, device: str | None, changes: Sequence[str]) -> StepReport:
    """It reports on a step of a plan, on a device of `DEVICES` with changed rates."""
    traffic = step_traffic(config, plan)
    if device is None:
        return StepReport(traffic)
    rates = device_rates(device, changes)
    return StepReport(traffic, device, rates, step_time(config, plan, rates))


def step_rows(config: RunConfig, plan: Plan, report: StepReport) -> Rows:
    """It yields (what, value) for messages and time of a step."""
    if plan.world_size > 1:
        yield "messages", "of the busiest rank, a step"
        yield from message_rows(report.traffic)
        yield "  all ranks", f"all_reduce {AGREEMENTS} x some KB, over gloo"
    if report.rates is None or report.time is None:
        yield "step time", f"--device NAME estimates it: {', '.join(DEVICES)}"
        return
    yield from time_rows(config, plan, report.rates, report.time, str(report.device))


def message_rows(traffic: Sequence[Sequence[Message]]) -> Rows:
    """It yields by axis the kinds of messages, how many there are and what is sent, reduced or gathered in all, of the
    stage that has most of it."""
    for axis in dict.fromkeys(message.axis for messages in traffic for message in messages):
        texts = []
        for kind in dict.fromkeys(m.kind for messages in traffic for m in messages if m.axis == axis):
            size, times = max(sums(messages, axis, kind) for messages in traffic)
            texts.append(f"{kind} {times:,} x, {in_units(size)}")
        yield f"  {axis}", "; ".join(texts)


def sums(messages: Sequence[Message], axis: str, kind: str) -> tuple[int, int]:
    """It returns the bytes and the number of messages of an axis and kind."""
    chosen = [message for message in messages if (message.axis, message.kind) == (axis, kind)]
    return sum(m.bytes * m.times for m in chosen), sum(m.times for m in chosen)


def time_rows(config: RunConfig, plan: Plan, rates: DeviceRates, time: StepTime, device: str) -> Rows:
    """It yields the estimate of a step's time."""
    used = utilisation(config, plan, rates, time.total)
    peak = rates.flops_per_second(config.precision.dtype) / 1e12
    yield (
        "step time",
        f"{time.total:.3g} s, an estimate from declared rates of {device}, not a measurement; the host's launches "
        "of kernels are not counted",
    )
    yield "  bound by", f"{time.bound}: {PARTS[time.bound]}"
    yield (
        "  utilisation",
        f"{100 * used:.1f} % of {peak:,.4g} TFLOP/s, {plan.batch.tokens / time.total:,.0f} tokens/s",
    )
    for part, seconds in asdict(time).items():
        if seconds:
            yield f"  {part}", f"{100 * seconds / time.total:.1f} %, {PARTS[part]}"


def step_warnings(plan: Plan, report: StepReport) -> Iterator[str]:
    """It yields what does not fit, and where the host is likely to be slower than the estimate."""
    if report.rates and plan.memory.total > 1e9 * report.rates.memory_gb:
        yield (
            f"the fullest rank needs about {in_units(plan.memory.total)}, more than the "
            f"{in_units(1e9 * report.rates.memory_gb)} of {report.device}"
        )
    if report.time and (seconds := block_seconds(plan, report.time)) < HOST_SECONDS:
        yield (
            "the host may be what a step waits for, and its launches of kernels are not in the estimate: "
            f"{report.device} takes about {1e3 * seconds:.2g} ms for a block and a micro-batch, and launching "
            f"their kernels took one host {1e3 * HOST_SECONDS:g} ms; larger micro-batches help"
        )


def step_document(config: RunConfig, plan: Plan, report: StepReport) -> dict[str, Any]:
    """It returns the same in plain JSON types: equal messages once, the estimate only where a device was named."""
    traffic = []
    for messages in report.traffic:
        counts: Counter[tuple[str, str, int]] = Counter()
        for message in messages:
            counts[message.axis, message.kind, message.bytes] += message.times
        keys = ("axis", "kind", "bytes", "times")
        traffic.append([dict(zip(keys, (*key, times), strict=True)) for key, times in counts.items()])
    if report.rates is None or report.time is None:
        return {"messages": traffic}
    seconds = report.time.total
    return {
        "messages": traffic,
        "step_time": {
            "seconds": seconds,
            **asdict(report.time),
            "bound": report.time.bound,
            "utilisation": utilisation(config, plan, report.rates, seconds),
            "tokens_per_second": plan.batch.tokens / seconds,
            "block_seconds": block_seconds(plan, report.time),
            "device": report.device,
            "rates": report.rates.model_dump(),
        },
    }
