"""`surefoot completion SHELL` prints a script for a shell, which then completes commands, options, keys and files.

The script is static: pressing the tabulator starts no Python. zsh runs that of bash, through its own bashcompinit.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from launch.children import child_environment
from launch.model_commands import model_commands, parser_of
from pretrain.config.keys import is_section, table_entry, walk
from pretrain.config.run import RunConfig

FILE, FOLDER, CONFIG, KEY, OTHER = "@file", "@folder", "@config", "@key", "@other"
"""Kinds of values that are not a list of words: the shell finds files, and nothing is known of others."""

KINDS = {
    "config": CONFIG,
    "run": FOLDER,
    "model": FOLDER,
    "folder": FOLDER,
    "out": FOLDER,
    "hostfile": FILE,
    "file": FILE,
    "tokenizer": FILE,
    "sources": FILE,
    "set": KEY,
}
"""Name of an option or argument -> kind of its value."""

BASH = r"""# Completion of surefoot: source it, or save it as ~/.local/share/bash-completion/completions/surefoot
_surefoot() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]} values= IFS=$'\n'
    COMPREPLY=()
    [ "$COMP_CWORD" -gt 2 ] && [ "$command" = prepare ] && command="prepare ${COMP_WORDS[2]}"
    [ "$COMP_CWORD" -eq 1 ] && command=
    case "$command $before" in
        *" =") values=@other ;;
%(values)s
    esac
    [ -z "$values" ] && case "$command $word" in
%(options)s
    esac
    [ -z "$values" ] && case "$command" in
%(arguments)s
    esac
    case "$values" in
        "" | @other) ;;
        @key) compopt -o nospace 2>/dev/null
            COMPREPLY=($(IFS=' '; compgen -S = -W "%(keys)s" -- "$word")) ;;
        @folder) compopt -o filenames 2>/dev/null
            COMPREPLY=($(compgen -d -- "$word")) ;;
        @file) compopt -o filenames 2>/dev/null
            COMPREPLY=($(compgen -f -- "$word")) ;;
        @config) compopt -o filenames 2>/dev/null
            COMPREPLY=($(compgen -f -X '!*.toml' -- "$word"; compgen -d -- "$word")) ;;
        *) COMPREPLY=($(IFS=' '; compgen -W "$values" -- "$word")) ;;
    esac
}
complete -F _surefoot surefoot
"""

ZSH = """# Completion of surefoot, for ~/.zshrc: eval "$(surefoot completion zsh)"
(( $+functions[compdef] )) || { autoload -U compinit && compinit }
autoload -U +X bashcompinit && bashcompinit
"""

FISH = (
    "# Completion of surefoot: save it as ~/.config/fish/completions/surefoot.fish\ncomplete -c surefoot -f\n"
)
FISH_VALUES = {
    FILE: "-rF",
    FOLDER: "-xa '(__fish_complete_directories)'",
    CONFIG: """-xa '(__fish_complete_suffix .toml | string match -r "^.*(?:/|\\\\.toml)(?:\\\\t.*)?\\$")'""",
    OTHER: "-x",
}


@dataclass(frozen=True)
class Words:
    """These words may follow a command."""

    options: Mapping[str, str | None]
    """Option -> values it takes: words, or a kind of them; none: it takes no value."""
    argument: str
    """What else follows, in the same terms."""


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """It returns the script for bash, zsh or fish."""
    commands = {"": Words(options_of(parser), " ".join(subcommands(parser)))}
    commands |= {name: words_of(below) for name, below in subcommands(parser).items()}
    commands |= {name: words_of(parser_of(name)) for name in model_commands()}
    commands |= dict(words_of_prepare())
    if shell == "fish":
        return FISH + "\n".join(fish_lines(commands)) + "\n"
    return (ZSH if shell == "zsh" else "") + bash(commands)


def keys() -> list[str]:
    """It lists the keys that `--set` can set."""
    return [
        key
        for key, field in walk(RunConfig)
        if "[]" not in key and (not is_section(field) or table_entry(field) is not None)
    ]


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """It returns the parsers of the commands by name."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(nested[0].choices) if nested else {}


def words_of(parser: argparse.ArgumentParser) -> Words:
    """It returns what may follow a command of ours."""
    arguments = [kind_of(action) for action in parser._actions if not action.option_strings]
    return Words(options_of(parser), arguments[0] if arguments else OTHER)


def options_of(parser: argparse.ArgumentParser) -> dict[str, str | None]:
    """It returns the long options of a parser with their values."""
    actions = [(name, action) for action in parser._actions for name in action.option_strings]
    return {name: None if a.nargs == 0 else kind_of(a) for name, a in actions if name.startswith("--")}


def kind_of(action: argparse.Action) -> str:
    """It returns the words that an option or argument takes, or their kind."""
    return " ".join(map(str, action.choices)) if action.choices else KINDS.get(action.dest, OTHER)


def words_of_prepare() -> Iterator[tuple[str, Words]]:
    """It yields what may follow `prepare`, which is another program: what its help says."""
    kinds = re.findall(r"^    (\w+) ", help_of(), re.MULTILINE)
    yield "prepare", Words({"--help": None}, " ".join(kinds))
    for kind in kinds:
        options = re.findall(r"^  (?:-\w, )?(--[\w-]+)( [A-Z]+)?", help_of(kind), re.MULTILINE)
        named = {name: KINDS.get(name[2:], OTHER) if value else None for name, value in options}
        yield f"prepare {kind}", Words(named, FILE)


@cache
def help_of(*words: str) -> str:
    """It returns the help of the data preparation."""
    command = [sys.executable, "-m", "data_pipeline", *words, "--help"]
    environment = {**child_environment(), "COLUMNS": "200"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def bash(commands: Mapping[str, Words]) -> str:
    """It fills the cases of the script for bash."""
    values = [
        f'        "{command} {option}") values="{value}" ;;'
        for command, words in commands.items()
        for option, value in words.options.items()
        if value is not None
    ]
    options = [
        f'        "{command} -"*) values="{" ".join(words.options)}" ;;'
        for command, words in commands.items()
    ]
    arguments = [f'        "{command}") values="{words.argument}" ;;' for command, words in commands.items()]
    return BASH % {
        "values": "\n".join(values),
        "options": "\n".join(options),
        "arguments": "\n".join(arguments),
        "keys": " ".join(keys()),
    }


def fish_lines(commands: Mapping[str, Words]) -> Iterator[str]:
    """It yields a line for each option and argument."""
    for command, words in commands.items():
        inside = [f"__fish_seen_subcommand_from {word}" for word in command.split()]
        if command in ("", "prepare"):  # the next word is a command as well
            inside.append(f"not __fish_seen_subcommand_from {words.argument}")
        where = f"complete -c surefoot -n '{'; and '.join(inside)}'"
        if words.argument == FILE:
            yield f"{where} -F"
        elif words.argument != OTHER:
            yield f"{where} {FISH_VALUES.get(words.argument, listed(words.argument))}"
        for option, value in words.options.items():
            wanted = " ".join(f"{key}=" for key in keys()) if value == KEY else value
            takes = "" if value is None or wanted is None else FISH_VALUES.get(value, listed(wanted))
            yield f"{where} -l {option[2:]} {takes}".rstrip()


def listed(words: str) -> str:
    """It returns the options of fish's `complete` for one of these words."""
    return f"-xa '{words}'"
