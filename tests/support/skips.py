"""A plugin of pytest: with `--no-silent-skips` a run fails on a skip whose reason is not expected."""

from collections.abc import Mapping

import pytest

EXPECTED: Mapping[str, str] = {
    "recorded elsewhere": "the last digits of the golden runs go by the processor and by torch's build",
    "SUREFOOT_DATA does not name": "real text is no part of the repository",
    "lm_eval is installed": "what is tested is that it is missed by name",
    "kenlm is not installed": "it is optional, and has to be compiled; the search is tested without it",
    "apex is installed here": "what is tested is that it can be done without",
    "no IPv6 on this machine": "containers often have none, and nothing of ours asks for it",
}
"""Beginning of a reason that a test is skipped for -> why that is all right on a machine of continuous integration."""

OPTION = "--no-silent-skips"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(OPTION, action="store_true", help="fail where a test is skipped that should not be")


def pytest_configure(config: pytest.Config) -> None:
    # Workers of pytest-xdist send their reports to the process that started them.
    if config.getoption(OPTION) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkipGuard())


class SkipGuard:
    """It collects the reasons of skips, of single tests and of whole files, and fails the run for unexpected ones."""

    def __init__(self) -> None:
        self.unexpected: list[str] = []
        """Test and reason."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not hasattr(report, "wasxfail"):
            self._look_at(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._look_at(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unexpected and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.unexpected:
            terminalreporter.section(f"skipped, and not expected to be ({OPTION})", red=True)
            for line in self.unexpected:
                terminalreporter.line(line)

    def _look_at(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.outcome != "skipped":
            return
        # Of a skip pytest keeps (file, line, "Skipped: REASON").
        where = report.longrepr
        text = str(where[2] if isinstance(where, tuple) else where)
        reason = text.removeprefix("Skipped: ")
        if not reason.startswith(tuple(EXPECTED)):
            self.unexpected.append(f"{report.nodeid}: {reason}")
