"""Reads and validates the values of one table of a TOML file.

Problems are collected until all values are read. Each names the key, the problem and what is
allowed.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from topicsvc.errors import ConfigError
from topicsvc.files import explain_file_error

__all__ = ["Table", "as_toml"]

T = TypeVar("T")

MAX_SHOWN = 80
"""Characters of a value that a problem shows at most."""


def as_toml(value: Any) -> str:
    """Spell a value as a TOML file has it; a long one is cut."""
    text = _as_toml(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _as_toml(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False)
        case float():
            return repr(value).replace("e+", "e")
        case list():
            return f"[{', '.join(map(_as_toml, value))}]"
        case dict():
            members = (f"{key} = {_as_toml(each)}" for key, each in value.items())
            return f"{{{', '.join(members)}}}"
    return str(value)  # a whole number, a date or a time


def _kind(value: Any) -> str:
    """The kind of a value, in words."""
    for kinds, words in _KINDS:
        if isinstance(value, kinds):
            return words
    return "a date or time"


_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (str, "text"),
    (bool, "a boolean"),
    ((int, float), "a number"),
    (list, "a list"),
    (dict, "a table"),
)


class Table:
    """One table of the file: returns its values and collects problems.

    Args:
        members: the table as `tomllib` returned it.
        name: its name in the file, such as ``session``; empty for the whole file.
        problems: the list to which problems are added.
        directory: the directory that relative paths start from.

    Attributes:
        directory: the same.
        keys: the keys that were read, with their defaults.
    """

    def __init__(
        self,
        members: dict[str, Any],
        name: str = "",
        problems: list[str] | None = None,
        directory: Path = Path(),
    ) -> None:
        self.directory = directory
        self._members = members
        self._name = name
        self._problems: list[str] = [] if problems is None else problems
        self._tables: list[Table] = []
        self._renamed: dict[str, str] = {}
        self.keys: dict[str, Any] = {}

    def given(self, key: str) -> Any:
        """The value in the file, of any type; None: not given."""
        return self._members.get(key)

    def ignore_unknown(self) -> None:
        """Do not report keys that are not read, as it is not known which ones are allowed."""
        self.keys.update(self._members)

    def renamed(self, old: str, new: str) -> None:
        """Let the problem of the old key `old` name the new key `new`."""
        self._renamed[old] = new

    def problem(self, key: str, wrong: str, allowed: str) -> None:
        """Add a problem: the value of `key` cannot be used."""
        self._add(f"{self._full(key)}: {wrong}; allowed: {allowed}")

    def add(self, line: str) -> None:
        """Add a problem that is a whole line."""
        self._add(line)

    def raise_problems(self, more: Iterable[str] = ()) -> None:
        """Look for unknown keys, and raise if there is any problem.

        Args:
            more: further problems. Those of keys that have a problem already are left out.

        Raises:
            ConfigError: with all problems.
        """
        self._report_unknown()
        reported = {line.partition(":")[0] for line in self._problems}
        self._problems += [line for line in more if line.partition(":")[0] not in reported]
        if self._problems:
            raise ConfigError(self._problems)

    def table(self, key: str) -> Table:
        """A table in this one; empty if it is not given."""
        members = self._read(key, {})
        if not isinstance(members, dict):
            self._must(key, f"a table, [{self._full(key)}]", members)
            # Nothing is known about its keys: what it lacks is no further problem.
            return Table({}, self._full(key), directory=self.directory)
        table = Table(members, self._full(key), self._problems, self.directory)
        self._tables.append(table)
        return table

    def tables(self, key: str) -> list[Table]:
        """A list of tables in this one; empty if it is not given."""
        value = self._read(key, [])
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            self._must(key, f"a list of tables, [[{self._full(key)}]]", value)
            value = []
        tables = [
            Table(members, f"{self._full(key)}[{place}]", self._problems, self.directory)
            for place, members in enumerate(value)
        ]
        self._tables += tables
        return tables

    def text(self, key: str, default: str | None, allowed: str) -> str | None:
        """A string that is not empty.

        Args:
            key: the key.
            default: the default value. None: the key is required. Empty: it is optional.
            allowed: what is allowed, for the problem's text.
        """
        value = self._read(key, default)
        if value == "" and key not in self._members:
            return None
        if value is None:
            self.problem(key, "missing", allowed)
        elif not isinstance(value, str) or not value:
            self._must(key, allowed, value)
        else:
            return value
        return None

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty if it is not given."""
        value = self._read(key, [])
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            self._not_texts(key, value)
            return ()
        return tuple(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._read(key, default)
        if not isinstance(value, bool):
            self._must(key, "true or false", value)
            return default
        return value

    def number(self, key: str, default: float, least: float, most: float) -> float:
        """A number from `least` to `most`."""
        return self._bounded(key, default, least, most, (int, float), "a number")

    def integer(self, key: str, default: int, least: int, most: int) -> int:
        """A whole number from `least` to `most`."""
        return self._bounded(key, default, least, most, (int,), "a whole number")

    def integer_or(self, key: str, default: int, least: int, most: int, word: str) -> int | str:
        """A whole number from `least` to `most`, or `word`."""
        value = self._read(key, default)
        if value == word:
            return word
        be = f'"{word}" or a whole number from {least} to {most}'
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if not is_number or not least <= value <= most:
            self._must(key, be, value, is_number)
            return default
        return int(value)

    def choice(self, key: str, allowed: tuple[T, ...], required: bool = False) -> T:
        """One of `allowed`; the first is the default, unless the key is required."""
        value = self._read(key, None if required else allowed[0])
        if value not in allowed:
            choices = " or ".join(f'"{choice}"' for choice in allowed)
            if value is None:
                self.problem(key, "missing", choices)
            else:
                self._must(key, choices, value)
            return allowed[0]
        return value  # type: ignore[no-any-return]

    def file(
        self,
        key: str,
        reader: Callable[[Path], T],
        default: T,
        required: bool = True,
        advice: str = "",
    ) -> T:
        """The content of the file that `key` names, as `reader` returns it.

        Args:
            key: the key.
            reader: reads the file; raises OSError or ValueError.
            default: is returned if the file cannot be used.
            required: whether the key must be given.
            advice: how to make such a file, with ``{}`` for its name.
        """
        name = self.text(key, None if required else "", "the path of a file")
        if name is None:
            return default
        path = self.directory / name
        try:
            return reader(path)
        except FileNotFoundError as error:
            allowed = advice.format(name) or "a file that can be read"
            self.problem(key, explain_file_error(path, error, name), allowed)
        except OSError as error:
            self.problem(key, explain_file_error(path, error, name), "a file that can be read")
        except ValueError as error:
            allowed = advice.format(name) or "see docs/configuration.md"
            self.problem(key, explain_file_error(path, error, name), allowed)
        return default

    def _bounded(
        self, key: str, default: T, least: Any, most: Any, kinds: tuple[type, ...], what: str
    ) -> T:
        value: Any = self._read(key, default)
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        if not is_number or not least <= value <= most:
            self._must(key, f"{what} from {least} to {most}", value, is_number)
            return default
        return value  # type: ignore[no-any-return]

    def has_problem(self, key: str) -> bool:
        """Whether a problem of `key` has been reported."""
        return any(line.startswith(f"{self._full(key)}:") for line in self._problems)

    def _not_texts(self, key: str, value: Any) -> None:
        be = 'a list of texts, ["...", "..."]'
        if not isinstance(value, list):
            self._must(
                key,
                f"a list, [{as_toml(value)}]" if value and isinstance(value, str) else be,
                value,
            )
            return
        [*_, wrong] = (each for each in value if not isinstance(each, str))
        self._add(f"{self._full(key)}: must be {be}, has {_kind(wrong)}: {as_toml(wrong)}")

    def _must(self, key: str, be: str, value: Any, is_right_kind: bool = False) -> None:
        """Add the problem of a value of a wrong kind, or out of its range."""
        shown = "empty" if value == "" else as_toml(value)
        kind = "" if is_right_kind or value in ("", [], {}) else f"{_kind(value)}: "
        self._add(f"{self._full(key)}: must be {be}, is {kind}{shown}")

    def _add(self, line: str) -> None:
        if line not in self._problems:
            self._problems.append(line)

    def _read(self, key: str, default: Any) -> Any:
        self.keys[key] = default
        return self._members.get(key, default)

    def _full(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key

    def _report_unknown(self) -> None:
        for key in self._members:
            if key in self._renamed:
                new = self._renamed[key]
                self.problem(key, f"the setting is now called {self._full(new)}", new)
            elif key not in self.keys:
                near = difflib.get_close_matches(key, self.keys, 1) or sorted(self.keys)
                self.problem(key, "there is no such setting", ", ".join(near))
        for table in self._tables:
            table._report_unknown()
