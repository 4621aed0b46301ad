"""Continuous integration does not pass over tests in silence."""

from pathlib import Path

import pytest
from support.skips import EXPECTED, OPTION

pytest_plugins = ["pytester"]

CONFTEST = f"""
import sys

sys.path.insert(0, {str(Path(__file__).parent)!r})
pytest_plugins = ["support.skips"]
"""
SKIPS = {
    "test_inside": "import pytest\ndef test(): pytest.skip('{reason}')",
    "test_mark": "import pytest\n@pytest.mark.skipif(True, reason='{reason}')\ndef test(): ...",
    "test_fixture": "import pytest\n@pytest.fixture\ndef f(): pytest.skip('{reason}')\ndef test(f): ...",
    "test_file": "import pytest\npytest.skip('{reason}', allow_module_level=True)",
    "test_module": "import pytest\npytest.importorskip('absent', reason='{reason}')\ndef test(): ...",
}
"""A skip of every kind."""


def run(pytester: pytest.Pytester, reason: str, *options: str) -> pytest.RunResult:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(**{name: source.format(reason=reason) for name, source in SKIPS.items()})
    pytester.makepyfile(
        test_other="import pytest\ndef test(): ...\n@pytest.mark.xfail\ndef test_x(): assert False"
    )
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["one process", "workers"])
def test_unexpected_skip_fails_the_run(pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
    result = run(pytester, "needs a moon", OPTION, *workers)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    lines = "\n".join(result.outlines).partition("skipped, and not expected to be")[2]
    assert [name for name in SKIPS if f"{name}.py" not in lines] == []
    assert lines.count(": needs a moon") == len(SKIPS)
    assert "test_other" not in lines


def test_expected_skip_does_not(pytester: pytest.Pytester) -> None:
    assert run(pytester, "recorded elsewhere: on a moon", OPTION).ret == pytest.ExitCode.OK


def test_without_the_option_skips_are_as_ever(pytester: pytest.Pytester) -> None:
    assert run(pytester, "needs a moon").ret == pytest.ExitCode.OK


def test_list_is_short_and_has_reasons() -> None:
    assert len(EXPECTED) <= 6
    assert all(reason and why for reason, why in EXPECTED.items())
