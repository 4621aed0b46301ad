"""What the watchdog finds goes into the ledger here: each alarm and suspicion once, not once a step."""

from collections.abc import Sequence
from dataclasses import asdict

from data_pipeline.reading.batches import Batches
from pretrain.ledger.ledger import RunLedger
from pretrain.ledger.record import Kind, Record
from pretrain.step import Action, StepReport, TrainState, Verdict
from pretrain.watchdog.watchdog import Watchdog

NONE: frozenset[str] = frozenset()


class FindingsLog:
    """It writes down what is new about a step: alarms, suspicions, vetoes, hosts. All ranks make the same calls."""

    def __init__(self, watchdog: Watchdog, ledger: RunLedger, batches: Batches, hosts: Sequence[str]) -> None:
        """`hosts` are the names of the machines, by rank."""
        self._watchdog = watchdog
        self._ledger = ledger
        self._batches = batches
        self._hosts = hosts
        self._alarmed, self._suspected = NONE, NONE
        """Signals that the ledger has last heard of."""
        self._odd_rank: int | None = None
        """Whose memory the ledger has last been told to suspect."""
        self._left_alone = False
        """Whether the step before had alarms that nothing is done about."""

    def reset(self) -> None:
        """It forgets what was told, after a rollback: what is found from here on is new."""
        self._alarmed, self._suspected, self._odd_rank = NONE, NONE, None

    def append(self, report: StepReport, verdict: Verdict, state: TrainState) -> None:
        """It writes down what is new about a step; `state` is that before it."""
        for kind, fields in self._news(report, verdict):
            self._ledger.append(Record(kind, report.step, state.attempt + 1, state.lineage, fields))

    def _news(self, report: StepReport, verdict: Verdict) -> list[tuple[Kind, dict[str, object]]]:
        findings = self._watchdog.findings
        news = self._new_host(report)
        if self._watchdog.switch:
            news.append((Kind.REBASELINE, {"reason": self._watchdog.switch, "declared": False}))
        if findings.calibrated:
            news.append((Kind.CALIBRATED, {"thresholds": findings.calibrated}))
        news += self._new_signals(verdict)
        left_alone = verdict.action is Action.PROCEED and bool(verdict.reason)
        if left_alone and not self._left_alone:
            news.append((Kind.LEFT_ALONE, {"reason": verdict.reason}))
        self._left_alone = left_alone
        if verdict.action is Action.VETO:
            news.append((Kind.VETO, {"reason": verdict.reason, "draws": list(self._batches.sample_range())}))
        return news

    def _new_host(self, report: StepReport) -> list[tuple[Kind, dict[str, object]]]:
        odd = self._watchdog.odd_rank(report)
        if odd is None or odd == self._odd_rank:
            return []
        self._odd_rank = odd
        return [(Kind.HOST_SUSPECT, {"rank": odd, "host": self._hosts[odd]})]

    def _new_signals(self, verdict: Verdict) -> list[tuple[Kind, dict[str, object]]]:
        findings = self._watchdog.findings
        alarmed, suspected = self._alarmed, self._suspected
        self._alarmed = frozenset(alarm.signal for alarm in findings.alarms)
        self._suspected = frozenset(alarm.signal for alarm in findings.suspects)
        news: list[tuple[Kind, dict[str, object]]] = []
        if self._alarmed - alarmed or (verdict.alarms and verdict.action is not Action.PROCEED):
            alarms = [asdict(alarm) for alarm in findings.alarms or verdict.alarms]
            news.append((Kind.ALARM, {"alarms": alarms}))
        if self._suspected - suspected - alarmed:
            news.append((Kind.SUSPECT, {"signals": sorted(self._suspected)}))
        return news
