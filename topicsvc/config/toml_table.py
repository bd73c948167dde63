"""Reads and validates the values of one table of a TOML file.

Problems are collected until all values are read. Each names the key, the problem and what is
allowed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from topicsvc.errors import ConfigError
from topicsvc.files import explain_file_error

__all__ = ["Table"]

T = TypeVar("T")


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
        line = f"{self._full(key)}: {wrong}; allowed: {allowed}"
        if line not in self._problems:
            self._problems.append(line)

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
            self.problem(key, "not a table", f"[{self._full(key)}]")
            members = {}
        table = Table(members, self._full(key), self._problems, self.directory)
        self._tables.append(table)
        return table

    def tables(self, key: str) -> list[Table]:
        """A list of tables in this one; empty if it is not given."""
        value = self._read(key, [])
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            self.problem(key, "not a list of tables", f"[[{self._full(key)}]]")
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
        if not isinstance(value, str) or not value:
            self.problem(key, "missing" if value is None else f"{value!r} is not a string", allowed)
            return None
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty if it is not given."""
        value = self._read(key, [])
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            self.problem(key, f"{value!r} is not a list of strings", '["...", "..."]')
            return ()
        return tuple(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._read(key, default)
        if not isinstance(value, bool):
            self.problem(key, f"{value!r} is not a boolean", "true or false")
            return default
        return value

    def number(self, key: str, default: float, least: float, most: float) -> float:
        """A number from `least` to `most`."""
        return self._bounded(key, default, least, most, (int, float), "a number")

    def integer(self, key: str, default: int, least: int, most: int) -> int:
        """A whole number from `least` to `most`."""
        return self._bounded(key, default, least, most, (int,), "a whole number")

    def choice(self, key: str, allowed: tuple[T, ...], required: bool = False) -> T:
        """One of `allowed`; the first is the default, unless the key is required."""
        value = self._read(key, None if required else allowed[0])
        if value not in allowed:
            wrong = "missing" if value is None else f"{value!r} is not one of these"
            self.problem(key, wrong, ", ".join(f'"{choice}"' for choice in allowed))
            return allowed[0]
        return value  # type: ignore[no-any-return]

    def file(self, key: str, reader: Callable[[Path], T], default: T, required: bool = True) -> T:
        """The content of the file that `key` names, as `reader` returns it."""
        name = self.text(key, None if required else "", "the path of a file")
        if name is None:
            return default
        path = self.directory / name
        try:
            return reader(path)
        except OSError as error:
            self.problem(key, explain_file_error(path, error, name), "a file that can be read")
        except ValueError as error:
            self.problem(key, explain_file_error(path, error, name), "see docs/configuration.md")
        return default

    def _bounded(
        self, key: str, default: T, least: Any, most: Any, kinds: tuple[type, ...], what: str
    ) -> T:
        value: Any = self._read(key, default)
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        if not is_number or not least <= value <= most:
            self.problem(key, f"{value!r} is not valid", f"{what} from {least} to {most}")
            return default
        return value  # type: ignore[no-any-return]

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
