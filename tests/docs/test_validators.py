"""docs/validators.md against the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from topicsvc import config, explain, validators
from topicsvc.settings import CheckSettings
from topicsvc.validators import http_agent, http_client, introspection_response, propfind
from topicsvc.validators.jwt import claims, key_source, keys, token
from topicsvc.validators.wrappers import concurrency, outage_log

PAGE = Path(__file__).parents[2] / "docs/validators.md"
ERRORS = ("ValidatorUnavailable", "CollectionUnreadable", "_Unacceptable")
PREFIX = re.compile(r"(?:PROPFIND|OPTIONS|introspection): ")


def templates(path: Path) -> Iterator[str]:
    """The texts of errors about an unavailable validator, with ``*`` for a value."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
        if isinstance(node, ast.Call) and name in ERRORS:
            [text] = node.args
            yield template(text)


def template(text: ast.expr) -> str:
    if isinstance(text, ast.JoinedStr):
        return "".join(map(template, text.values))
    return str(text.value) if isinstance(text, ast.Constant) else "*"


class ReasonTests(SynchronousTestCase):
    def setUp(self) -> None:
        section = PAGE.read_text("utf-8").split("\n## Messages in the log\n")[1]
        self.documented = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
        root = Path(validators.__file__).parent
        texts = {text for path in root.rglob("*.py") for text in templates(path)}
        texts = {PREFIX.sub("", text) for text in texts} - {"*", "*: *"}
        texts |= {message for _, message in explain._HTTP_MESSAGES} | {"TLS: *"}
        self.patterns = [re.escape(text).replace(r"\*", ".+") for text in texts]

    def test_each_reason_of_the_code_is_listed(self) -> None:
        self.assertGreater(len(self.patterns), 20)
        for pattern in self.patterns:
            found = any(re.fullmatch(pattern, reason) for reason in self.documented)
            self.assertTrue(found, pattern)

    def test_each_reason_that_is_listed_is_in_the_code(self) -> None:
        for reason in self.documented:
            found = any(re.fullmatch(pattern, reason) for pattern in self.patterns)
            self.assertTrue(found, reason)


class FigureTests(SynchronousTestCase):
    def test_each_figure_is_that_of_the_code(self) -> None:
        text = " ".join(PAGE.read_text("utf-8").split())
        checks = CheckSettings()
        for figure in (
            f"timeout = {checks.timeout} ",
            f"concurrency = {checks.concurrency} ",
            f"cache = {checks.cache} ",
            f"recheck = {checks.recheck} ",
            f"up to {concurrency.MAX_WAITING} checks, each for up to {concurrency.QUEUE_TIMEOUT} s",
            f"more than {concurrency.MAX_WAITING} checks wait",
            f"for {http_agent.IDLE_TIMEOUT} s",
            f"at most every {outage_log.LOG_INTERVAL} s",
            f"exceeded {http_agent.MAX_RESPONSE >> 10} KiB",
            f"a body of more than {http_client.MAX_BODY} bytes",
            f"a body of more than {http_client.MAX_BODY >> 10} KiB",
            f"a body of more than {propfind.MAX_PROPERTIES} bytes",
            f"PROPFIND: more than {propfind.MAX_PROPERTIES >> 20} MiB",
            f"more than {propfind.MAX_PARTS} elements and attributes",
            f"more than {propfind.MAX_DEPTH} levels of elements",
            f"a tag of more than {propfind.MAX_TAG} bytes",
            f"up to {introspection_response.NOT_BEFORE_LEEWAY} s in the future",
            f"no result within {checks.timeout} s",
            f"not checked within {concurrency.QUEUE_TIMEOUT} s",
            f"A key set may have {keys.MAX_JWKS >> 10} KiB and {keys.MAX_KEYS} keys",
            f"has more than {keys.MAX_KEYS} keys",
            f"at least {key_source.FETCH_INTERVAL:.0f} s apart",
            f"At most {key_source.MAX_WAITING} tokens wait at once",
            f"more than {key_source.MAX_WAITING} tokens with unknown keys wait",
            f"at most every {key_source.LOG_INTERVAL:.0f} s for each reason",
            f"at most {claims.MAX_DETAIL_TOPICS} topics or patterns",
            f"at most {token.MAX_TOKEN >> 10} KiB |",
        ):
            self.assertIn(figure, text)


class RecipeTests(SynchronousTestCase):
    def test_the_settings_of_each_recipe_are_valid(self) -> None:
        text = PAGE.read_text("utf-8")
        section = text.split("\n## Recipes\n")[1].split("\n## ")[0]
        recipes = re.findall(r"^### (.*?)\n.*?```toml\n(.*?)```", section, re.MULTILINE | re.DOTALL)
        self.assertEqual(len(recipes), section.count("\n### "))
        for name, settings in recipes:
            with self.subTest(name):
                top = 'listen = ["tcp:0"]\nunit_url = "https://push.example/"\n'
                validator = config.load(top + settings).validator
                self.assertEqual(validator.kind, "jwt")

    def test_each_recipe_says_whether_it_was_run(self) -> None:
        section = PAGE.read_text("utf-8").split("\n## Recipes\n")[1].split("\n## ")[0]
        for recipe in section.split("\n### ")[1:]:
            self.assertRegex(recipe.split("\n")[2], r"^(Run|Not run)\b")
