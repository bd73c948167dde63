"""``topicsvc completion``: prints a script that completes commands and options in a shell.

The scripts are made from the parser. Packages that do this for argparse read its private names,
and have no output for fish.
"""

from __future__ import annotations

import argparse
import re
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from topicsvc.cli.parser import Parser, make_parser
from topicsvc.cli.terminal import print_text

__all__ = ["bash", "fish", "run", "zsh"]


def run(options: Namespace) -> None:
    """Print the script for one shell.

    Raises:
        CommandFailed: standard output cannot take it.
    """
    script = {"bash": bash, "zsh": zsh, "fish": fish}[options.shell]
    print_text(script(make_parser()))


def bash(parser: Parser) -> str:
    """A script for bash, to be sourced."""
    cases = "\n".join(
        f"""        {name})
            words={_quoted(" ".join([*_options(command), *_choices(command)]))}
            files={_quoted(" ".join(_options(command, takes_file=True)))}
            values={_quoted(" ".join(_options(command, takes_text=True)))}
{"".join(_bash_choices(command))}            ;;"""
        for name, command in parser.commands.items()
    )
    return f"""\
# Completes {parser.prog} in bash: source <({parser.prog} completion bash)
_{parser.prog}() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}}
    local words files values
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        words={_quoted(" ".join([*parser.commands, *_options(parser)]))}
    else
        case ${{COMP_WORDS[1]}} in
{cases}
        esac
    fi
    case " $files " in *" $previous "*)
        compopt -o filenames
        COMPREPLY=($(compgen -f -- "$current"))
        return ;;
    esac
    case " $values " in *" $previous "*) return ;; esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -F _{parser.prog} {parser.prog}
"""


def _bash_choices(command: Parser) -> Iterator[str]:
    """Lines that complete the values of options with fixed values."""
    for action in command.arguments:
        if action.choices and action.option_strings:
            names, values = "|".join(action.option_strings), _quoted(" ".join(action.choices))
            yield f"""\
            case $previous in {names})
                COMPREPLY=($(compgen -W {values} -- "$current"))
                return ;;
            esac
"""


def zsh(parser: Parser) -> str:
    """A script for zsh, as a file ``_topicsvc`` in a directory of ``fpath``, or to be sourced."""
    commands = "\n".join(
        f"        {_quoted(f'{name}:{_summary(command)}')}"
        for name, command in parser.commands.items()
    )
    cases = "\n".join(
        f"        {name})\n            _arguments \\\n"
        + " \\\n".join(f"                {each}" for each in _zsh_arguments(command))
        + "\n            ;;"
        for name, command in parser.commands.items()
    )
    own = " ".join(_quoted(each) for each in _options(parser))
    return f"""\
#compdef {parser.prog}
# Completes {parser.prog} in zsh: source <({parser.prog} completion zsh)
_{parser.prog}() {{
    local -a commands
    commands=(
{commands}
    )
    if (( CURRENT == 2 )); then
        _describe command commands
        compadd -- {own}
        return
    fi
    local command=$words[2]
    shift words
    (( CURRENT-- ))
    case $command in
{cases}
    esac
}}
if [ "$funcstack[1]" = _{parser.prog} ]; then
    _{parser.prog} "$@"
else
    compdef _{parser.prog} {parser.prog}
fi
"""


def _zsh_arguments(command: Parser) -> Iterator[str]:
    for action in command.arguments:
        if not action.option_strings:
            values = f"({' '.join(action.choices)})" if action.choices else " "
            optional = "::" if action.nargs == "?" else ":"
            yield _quoted(f"{optional}{_name(action)}:{values}")
            continue
        values = "_files" if _takes_file(action) else " "
        if action.choices:
            values = f"({' '.join(action.choices)})"
        value = f":{_name(action)}:{values}" if _takes_value(action) else ""
        repeat = "*" if action.const is None and isinstance(action.default, list) else ""
        text = re.sub(r"([\[\]:\\])", r"\\\1", action.help or "")
        for option in action.option_strings:
            yield _quoted(f"{repeat}{option}[{text}]{value}")


def fish(parser: Parser) -> str:
    """A script for fish, as a file in its directory of completions, or to be sourced."""
    prog = parser.prog
    lines = [
        f"# Completes {prog} in fish: {prog} completion fish | source",
        f"complete -c {prog} -f",
        *(_fish_option(prog, "__fish_use_subcommand", each) for each in parser.arguments),
    ]
    for name, command in parser.commands.items():
        summary = _fish_quoted(_summary(command))
        lines.append(f"complete -c {prog} -n __fish_use_subcommand -a {name} -d {summary}")
        condition = f"__fish_seen_subcommand_from {name}"
        for action in command.arguments:
            if action.option_strings:
                lines.append(_fish_option(prog, condition, action))
            elif action.choices:
                choices = _fish_quoted(" ".join(action.choices))
                lines.append(f"complete -c {prog} -n {_fish_quoted(condition)} -a {choices}")
    return "\n".join(lines) + "\n"


def _fish_option(prog: str, condition: str, action: argparse.Action) -> str:
    names = " ".join(
        f"-l {each[2:]}" if each.startswith("--") else f"-s {each[1:]}"
        for each in action.option_strings
    )
    value = ""
    if _takes_value(action):
        value = " -r -F" if _takes_file(action) else " -x"
        if action.choices:
            value += f" -a {_fish_quoted(' '.join(action.choices))}"
    begin = f"complete -c {prog} -n {_fish_quoted(condition)}"
    return f"{begin} {names}{value} -d {_fish_quoted(action.help or '')}"


def _options(parser: Parser, takes_file: bool = False, takes_text: bool = False) -> Iterator[str]:
    """The options of a parser: all of them, or those with such a value."""
    for action in parser.arguments:
        is_file = _takes_file(action)
        is_text = _takes_value(action) and not is_file
        if not (takes_file or takes_text) or (takes_file and is_file) or (takes_text and is_text):
            yield from action.option_strings


def _choices(parser: Parser) -> Iterator[str]:
    for action in parser.arguments:
        if action.choices and not action.option_strings:
            yield from action.choices


def _takes_value(action: argparse.Action) -> bool:
    return bool(action.option_strings) and action.nargs != 0


def _takes_file(action: argparse.Action) -> bool:
    return _takes_value(action) and (action.type is Path or action.metavar == "FILE")


def _name(action: argparse.Action) -> str:
    return str(action.metavar or action.dest)


def _summary(parser: Parser) -> str:
    return (parser.description or "").removesuffix(".")


def _quoted(text: str) -> str:
    """One word of bash or zsh, in single quotes."""
    return "'" + text.replace("'", r"'\''") + "'"


def _fish_quoted(text: str) -> str:
    """One word of fish, in single quotes."""
    return "'" + text.replace("\\", r"\\").replace("'", r"\'") + "'"
