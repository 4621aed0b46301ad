"""Loading a configuration: what is accepted, how problems are told, and writing it back."""

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pretrain.config.foreign_names import FOREIGN_NAMES
from pretrain.config.keys import is_section, of_other_kinds, sections_of, walk
from pretrain.config.loader import changed_settings, dump_config, load_config, parse_value
from pretrain.config.problems import known_name, suggest, working_value
from pretrain.config.run import DATA, RunConfig
from pretrain.errors import ConfigurationError, Problem
from pretrain.optim.config import AdamWConfig, SGDConfig
from pretrain.section import kind_of

BASE = """
[run]
name = "test"
steps = 100
[model]
num_layers = 2
hidden_size = 64
vocabulary_size = 500
attention = { num_heads = 4 }
[data]
sources = [{ path = "somewhere" }]
sequence_length = 32
micro_batch_size = 2
global_batch_size = 8
[optimizer]
learning_rate = 1e-3
"""

FIRST, *_ = DATA
FIELDS = dict(walk(RunConfig))
OTHERS = of_other_kinds(RunConfig, ("model", FIRST)) | of_other_kinds(
    RunConfig, ("data", kind_of(DATA[FIRST]))
)
LEAVES = [key for key, field in FIELDS.items() if not is_section(field) and key not in OTHERS]
"""Keys of all sections, but not those of other tasks than that of the base."""
LETTERS = "abcdefghijklmnopqrstuvwxyz_"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.toml"
    path.write_text(BASE)
    return path


@pytest.fixture(scope="session")
def shared_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "base.toml"
    path.write_text(BASE)
    return path


def problems_of(path: Path, *overrides: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigurationError) as caught:
        load_config(path, overrides)
    return caught.value.problems


def test_overrides_replace_values_of_any_depth(base: Path) -> None:
    config = load_config(
        base,
        [
            "run.steps=7",
            "run.steps=9",
            "run.name=a-bare-word",
            "model.attention.num_heads=8",
            'data.sources=[{path="x", weight=2}, {path="y"}]',
            "precision.dtype=fp32",
            "optimizer.learning_rate = 1e-4",
        ],
    )
    assert config.run.steps == 9
    assert config.run.name == "a-bare-word"
    assert config.model.attention.num_heads == 8
    assert [(source.path, source.weight) for source in config.data.sources] == [("x", 2.0), ("y", 1.0)]
    assert config.precision.dtype == "fp32"
    assert config.optimizer.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1e-4", 1e-4),
        ("true", True),
        ("word", "word"),
        ("/some/path", "/some/path"),
        ('"quoted text"', "quoted text"),
        ("[1, 2]", [1, 2]),
        ("{a = [1]}", {"a": [1]}),
        ("08", "08"),
        ("two words", "two words"),
    ],
)
def test_override_values_are_toml_or_a_bare_word(text: str, value: object) -> None:
    assert parse_value(text) == value


@pytest.mark.parametrize("text", ["", "[1", '{a = "b"', '"open', "1\nsteps = 2", "x\ny"])
def test_broken_override_values_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_value(text)


def test_all_faults_come_at_once_each_with_key_value_rule_and_remedy(base: Path) -> None:
    problems = problems_of(
        base,
        "run.steps=0",
        "model.num_layer=3",
        "optimizer.lr=1e-3",
        'data.micro_batch_size="8"',
        "model.activation=relu",
        "optimizer.beta1=inf",
        "no-equals-sign",
        "run.steps.more=1",
    )
    told = {problem.key: str(problem) for problem in problems}
    assert set(told) == {
        "run.steps",
        "model.num_layer",
        "optimizer.lr",
        "data.micro_batch_size",
        "model.activation",
        "optimizer.beta1",
        "--set no-equals-sign",
        "--set run.steps.more=1",
    }
    assert told["run.steps"] == "run.steps = 0: must be greater than 0; for example steps = 1000"
    assert "did you mean model.num_layers?" in told["model.num_layer"]
    assert "did you mean optimizer.learning_rate?" in told["optimizer.lr"]
    assert told["data.micro_batch_size"].startswith('data.micro_batch_size = "8": must be a whole number')
    assert "'gelu' or 'swiglu'" in told["model.activation"]
    assert "finite" in told["optimizer.beta1"]


@pytest.mark.parametrize("value", ["true", "1.5", '"8"', "[8]"])
def test_nothing_is_converted_silently(base: Path, value: str) -> None:
    (problem,) = problems_of(base, f"run.steps={value}")
    assert problem.key == "run.steps"
    assert "whole number" in problem.rule


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        (
            "watchdog.horizon=9007199254740992",
            "watchdog.horizon = 9007199254740992: must be a number below 2^53",
        ),
        ("run.steps=100000000000000000000", "must be a number below 2^53"),
        ("run.seed=9223372036854775808", "must be a number below 2^63"),
        ("parallel.timeout_seconds=1e308", "must be a number below 2^53"),
        ("optimizer.learning_rate=1e300", "optimizer.learning_rate = 1e+300: must be a number below 2^53"),
        ("parallel.control_timeout_seconds=1e12", "must be at most"),
        ("data.prefetch_steps=1000000000000", "must be at most 1024"),
        (
            'data.sources=[{path="a",weight=1e308},{path="b",weight=1e308}]',
            "data.sources[1].weight = 1e+308: must be a number below 2^53",
        ),
    ],
)
def test_numbers_that_nothing_can_be_computed_with_are_refused(base: Path, override: str, rule: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(rule)):
        load_config(base, [override])


def test_numbers_for_runs_that_are_ended_by_hand(base: Path) -> None:
    config = load_config(base, ["run.steps=9007199254740991", "run.seed=9223372036854775807"])
    assert (config.run.steps, config.run.seed) == (2**53 - 1, 2**63 - 1)


def test_missing_keys_are_named_with_an_example(tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.write_text("")
    assert {problem.key for problem in problems_of(path)} == {"run", "model", "data", "optimizer"}
    path.write_text(BASE.replace("steps = 100", ""))
    assert [str(problem) for problem in problems_of(path)] == [
        "run.steps: required; for example steps = 1000"
    ]


def test_misspelled_section_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "typo.toml"
    path.write_text(BASE.replace("[optimizer]", "[optimzer]"))
    assert [str(problem) for problem in problems_of(path)] == [
        "optimzer: unknown key; did you mean optimizer?"
    ]


def test_sections_of_other_frameworks_are_gone_through(base: Path) -> None:
    problems = problems_of(base, "training.seq_len=3", "training.steps=4")
    assert [problem.remedy for problem in problems] == [
        "did you mean data.sequence_length?",
        "did you mean run.steps?",
    ]


def test_entry_of_a_list_is_named_by_its_index(base: Path) -> None:
    problems = problems_of(base, 'data.sources=[{path="a"}, {path="b", wieght=2}, {weight=-1}]')
    assert [problem.key for problem in problems] == [
        "data.sources[1].wieght",
        "data.sources[2].path",
        "data.sources[2].weight",
    ]
    assert problems[0].remedy == "did you mean data.sources[1].weight?"


@st.composite
def typos(draw: st.DrawFn) -> tuple[str, str]:
    """(known key, the same with one character inserted, removed, replaced or swapped in its last part)."""
    key = draw(st.sampled_from([key for key in FIELDS if len(known_name(key)) > 2 and key not in OTHERS]))
    section, _, name = key.rpartition(".")
    at = draw(st.integers(0, len(name) - 1))
    letter = draw(st.sampled_from(LETTERS))
    misspelled = draw(
        st.sampled_from(
            [
                name[:at] + letter + name[at:],
                name[:at] + name[at + 1 :],
                name[:at] + letter + name[at + 1 :],
                name[:at] + name[at + 1 : at + 2] + name[at] + name[at + 2 :],
            ]
        )
    )
    return key, f"{section}.{misspelled}".lstrip(".")


@example(("evaluation.samples", "evaluation.eamples"))
@given(typos())
def test_any_one_character_typo_names_the_key(shared_base: Path, pair: tuple[str, str]) -> None:
    key, misspelled = pair
    if misspelled in FIELDS or not known_name(misspelled):
        return
    text = re.sub(r"\[\]", "[0]", misspelled)
    if "[0]" in text:
        section, _, name = text.partition("[0].")
        override = f'{section}=[{{path="a", {name}=1}}]'
    else:
        override = f"{text}=1"
    (problem,) = problems_of(shared_base, override)
    assert problem.key == text
    named = re.findall(r"[\w.\[\]]+", problem.remedy.removeprefix("did you mean "))
    meant = re.sub(r"\[\]", "[0]", key)
    assert meant in named or all(is_one_off(text, other) for other in named), "another key is as near"


def is_one_off(one: str, other: str) -> bool:
    """It tells whether two words differ by one character, in one of them or in both."""
    while one and other and one[0] == other[0]:
        one, other = one[1:], other[1:]
    while one and other and one[-1] == other[-1]:
        one, other = one[:-1], other[:-1]
    return max(len(one), len(other)) <= 1


def test_foreign_names_lead_to_keys_that_exist(base: Path) -> None:
    for name, ours in FOREIGN_NAMES.items():
        assert ours in FIELDS, name
        assert ours in suggest(RunConfig, name)
        assert ours in suggest(RunConfig, f"training.{name.upper().replace('_', '-')}")


@pytest.mark.parametrize("key", [key for key in LEAVES if "[]" not in key])
def test_every_suggested_value_is_accepted(base: Path, key: str) -> None:
    section, _, name = key.rpartition(".")
    kinds = sections_of(RunConfig.model_fields[section]) if section in RunConfig.model_fields else {}
    kind = next((kind for kind, of in kinds.items() if kind and name in of.model_fields), None)
    chosen = [f"{section}.kind={kind}"] if kind and section != "data" else []
    load_config(base, [*chosen, f"{section}.{working_value(RunConfig, key)}"])


def test_a_key_of_another_kind_of_section_is_told_as_such(base: Path) -> None:
    (problem,) = problems_of(base, "optimizer.momentum=0.9")
    assert str(problem) == 'optimizer.momentum = 0.9: unknown key; it is a key of kind = "sgd" or "lars"'
    sgd = "optimizer.kind=sgd"
    problems = problems_of(
        base, sgd, "optimizer.beta1=0.9", "optimizer.nesterof=true", "optimizer.momentum=2"
    )
    assert [str(problem) for problem in problems] == [
        'optimizer.beta1 = 0.9: unknown key; it is a key of kind = "adamw" or "lamb"',
        "optimizer.nesterof = true: unknown key; did you mean optimizer.nesterov?",
        "optimizer.momentum = 2: must be less than 1; for example momentum = 0.9",
    ]
    (problem,) = problems_of(base, "optimizer.kind=adam")
    kinds = '"adamw", "sgd", "lars", "lamb", "adagrad"'
    assert str(problem) == f'optimizer.kind = "adam": must be {kinds}; for example kind = "adamw"'


def test_more_blocks_than_can_be_planned_are_refused(base: Path) -> None:
    """A plan takes time and memory for each of them."""
    (problem,) = problems_of(base, "model.num_layers=1000000000")
    assert str(problem).startswith("model.num_layers = 1000000000: must be at most 100000")


def test_a_kind_of_no_text_is_an_error_like_any_other(base: Path) -> None:
    for value in ("[1]", "true", "3"):
        problems = problems_of(base, f"model.kind={value}")
        assert [problem.key for problem in problems] == ["model.kind"]
        assert problems[0].value == value


def test_an_unknown_kind_hides_nothing_else(base: Path) -> None:
    found = problems_of(base, "model.kind=gtp", "model.num_layers=x", "model.wdith=3", "data.shuffle=3")
    assert {problem.key for problem in found} >= {
        "model.kind",
        "model.num_layers",
        "model.wdith",
        "data.shuffle",
    }


def test_of_an_unknown_kind_nothing_else_is_judged(base: Path) -> None:
    found = problems_of(base, "model.kind=bert", "model.num_layers=x", "data.shuffle=3", "run.steps=x")
    assert [problem.key for problem in found] == ["run.steps", "model.kind"]


def test_the_kind_of_data_is_not_the_user_s_to_choose(base: Path) -> None:
    (problem,) = problems_of(base, "data.kind=text")
    assert str(problem) == "data.kind: unknown key; the kind of data follows from model.kind"


def test_a_section_is_of_the_first_kind_where_it_names_none(base: Path, tmp_path: Path) -> None:
    assert isinstance(load_config(base).optimizer, AdamWConfig)
    sgd = load_config(base, ["optimizer.kind=sgd", "optimizer.nesterov=true"])
    assert sgd.optimizer == SGDConfig(learning_rate=1e-3, nesterov=True)
    written = tmp_path / "written.toml"
    written.write_text(dump_config(sgd))
    assert load_config(written) == sgd


def test_syntax_errors_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text('[run]\nname = "a"\nsteps = \n')
    with pytest.raises(ConfigurationError, match=re.escape(f"{path}:3: not valid TOML")):
        load_config(path)
    path.write_text("[run")
    with pytest.raises(ConfigurationError, match=re.escape(f"{path}: at the end: not valid TOML")):
        load_config(path)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_unreadable_files_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "file.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=re.escape(str(path))):
        load_config(path)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("run.seed=3", "checkpoint.keep_every=2000", 'data.validation=[{path="v", weight=0.1}]'),
        (
            "run.deepspeed_config=ds.json",
            "data.cache=/tmp/a b",
            "optimizer.learning_rate=1.2345678901234567e-7",
        ),
    ],
)
def test_what_is_written_loads_to_the_same(base: Path, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    config = load_config(base, overrides)
    written = tmp_path / "written.toml"
    written.write_text(dump_config(config))
    assert load_config(written) == config


def test_changes_between_two_sessions_are_named() -> None:
    before = (
        '[run]\nsteps = 5\nname = "a"\n[optimizer]\nlearning_rate = 0.1\n[data]\nsources = [{ path = "x" }]\n'
    )
    now = before.replace("0.1", "0.2").replace("steps = 5\n", "")
    assert changed_settings(before, before) == {}
    assert changed_settings(before, now) == {
        "optimizer.learning_rate": "0.1 -> 0.2",
        "run.steps": "5 -> unset",
    }
    assert changed_settings("half a li", now) == {}


def test_paths_are_expanded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.setenv("HOME", "/home/me")
    path = tmp_path / "run.toml"
    path.write_text(BASE)
    sources = """data.sources=[{path='~/corpus'},{path='s3://bucket/$$x'}]"""
    config = load_config(path, ["run.folder=$SCRATCH/$$HOME", "data.cache=~/cache", sources])
    assert config.run.folder == Path("/scratch/me/$HOME")
    assert config.data.cache == Path("/home/me/cache")
    assert [source.path for source in config.data.sources] == ["/home/me/corpus", "s3://bucket/$x"]
    path.write_text(dump_config(config))
    assert load_config(path) == config


@pytest.mark.parametrize("key", ["run.folder", "run.deepspeed_config", "data.cache"])
def test_a_variable_without_a_value_is_named(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    path = tmp_path / "run.toml"
    path.write_text(BASE)
    with pytest.raises(ConfigurationError) as caught:
        load_config(path, [f"{key}=$NOWHERE/x", "data.sources=[{path='${NOWHERE}'}]"])
    told = {problem.key: problem.rule for problem in caught.value.problems}
    assert told.keys() == {key, "data.sources[0].path"}
    assert all(rule.startswith("$NOWHERE is not set") for rule in told.values())


def test_the_folder_of_a_run_stands_for_its_settings(tmp_path: Path) -> None:
    """Also where it was moved or renamed, or is named from elsewhere."""
    path = tmp_path / "run.toml"
    path.write_text(BASE)
    config = load_config(
        path, ["run.name=first", f"run.folder={tmp_path}/runs", "optimizer.learning_rate=0.5"]
    )
    first = tmp_path / "runs" / "first"
    first.mkdir(parents=True)
    (first / "config.toml").write_text(dump_config(config))
    assert load_config(first) == config
    changed = load_config(first, ["run.seed=9"])
    assert (changed.run.seed, changed.optimizer.learning_rate) == (9, 0.5)
    moved = first.rename(tmp_path / "moved")
    assert load_config(moved).run_folder == moved
    with pytest.raises(ConfigurationError, match=r"a folder without config\.toml"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("folder", "tensors", "told"),
    [
        (
            "a run/checkpoints/step00000040-a2",
            "state_00000",
            "train '{0}/a run' --resume step00000040-a2` goes on",
        ),
        ("export", "model", "{0}/export/config.toml and a run.name of its own begin one"),
    ],
)
def test_the_folder_of_a_model_is_no_run(folder: str, tensors: str, told: str, tmp_path: Path) -> None:
    """It would begin anew there, with other weights than those that lie beside its settings."""
    place = tmp_path / folder
    place.mkdir(parents=True)
    (place / "config.toml").write_text(BASE)
    (place / f"{tensors}.safetensors").touch()
    with pytest.raises(ConfigurationError) as caught:
        load_config(place)
    assert "holds tensors of a model and is no run" in str(caught.value)
    assert told.format(tmp_path) in str(caught.value)
    assert load_config(place / "config.toml").run.steps > 0


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("model.widht", "model.hidden_size"),
        ("model.d_modle", "model.hidden_size"),
        ("model.n_layrs", "model.num_layers"),
        ("data.seq_lenght", "data.sequence_length"),
        ("optimizer.max_grad_nrm", "optimizer.gradient_clipping"),
    ],
)
def test_misspelled_name_of_another_framework_gets_a_hint(base: Path, wrong: str, meant: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config(base, [f"{wrong}=64"])
    assert f"did you mean {meant}?" in str(caught.value)


def test_word_that_is_like_nothing_gets_none(base: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config(base, ["model.zzyzx=64"])
    assert "did you mean" not in str(caught.value)


def test_a_checkpoint_is_resumed_from_by_an_option() -> None:
    with pytest.raises(ConfigurationError, match=r"`surefoot train runs/a --resume step00000010-a1` goes on"):
        load_config("runs/a@step00000010-a1")
    with pytest.raises(ConfigurationError) as caught:
        load_config("me@home.toml")
    assert "--resume" not in str(caught.value)
