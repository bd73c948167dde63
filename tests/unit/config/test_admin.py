"""``[admin]``: the endpoint for operators, and its short form."""

from __future__ import annotations

from pathlib import Path

from tests.unit.config.test_config import ConfigTestCase
from topicsvc import config
from topicsvc.settings import Config, OperatorSettings

ENDPOINT = "tcp:9090:interface=127.0.0.1"


class AdminTests(ConfigTestCase):
    def token_file(self, content: str) -> Path:
        path = Path(self.mktemp())
        path.write_text(content, "utf-8")
        return path

    def admin(self, table: str, option: str | None = None) -> Config:
        return config.load(self.text(f"[admin]\n{table}"), admin=option)

    def test_the_short_form_is_the_endpoint_alone(self) -> None:
        short = self.load(top=f'admin = "{ENDPOINT}"')
        self.assertEqual(short, self.admin(f'listen = "{ENDPOINT}"'))
        self.assertEqual((short.admin, short.operator), (ENDPOINT, OperatorSettings(False, None)))

    def test_the_table(self) -> None:
        file = self.token_file("a-token\n")
        settings = self.admin(f'listen = "{ENDPOINT}"\ninspect = true\ntoken_file = "{file}"')
        self.assertEqual(settings.admin, ENDPOINT)
        self.assertEqual(settings.operator, OperatorSettings(True, "a-token"))

    def test_the_option_overrides_only_the_endpoint(self) -> None:
        settings = self.admin(f'listen = "{ENDPOINT}"\ninspect = true', "tcp:9091")
        self.assertEqual((settings.admin, settings.operator.inspect), ("tcp:9091", True))

    def test_processes_that_share_a_file_have_their_endpoints_from_the_option(self) -> None:
        settings = self.admin("inspect = true", "tcp:9091")
        self.assertEqual((settings.admin, settings.operator.inspect), ("tcp:9091", True))
        self.assertIsNone(self.admin("inspect = true").admin)

    def test_the_token_is_not_in_the_representation(self) -> None:
        settings = self.admin(f'token_file = "{self.token_file("a-token")}"')
        self.assertNotIn("a-token", repr(settings))

    def test_each_problem_names_the_setting_and_what_is_allowed(self) -> None:
        for table, problem in (
            ("listen = 9090", "admin.listen: must be an endpoint, "),
            ("inspect = 1", "admin.inspect: must be true or false, is a number: 1"),
            ('token_file = "nowhere"', "admin.token_file: nowhere: No such file or directory; "),
            ("inspekt = true", "admin.inspekt: there is no such setting; allowed: inspect"),
        ):
            self.assert_problems(self.text(f"[admin]\n{table}"), problem)

    def test_a_value_that_is_neither_an_endpoint_nor_a_table(self) -> None:
        for value in ("9090", '["tcp:9090"]', "true", "[{}]"):
            self.assert_problems(self.text(top=f"admin = {value}"), "admin: ")
        allowed = f'must be an endpoint, "{ENDPOINT}", or the table [admin], is a number: 9090'
        with self.assertRaises(config.ConfigError) as caught:
            self.load(top="admin = 9090")
        self.assertIn(allowed, caught.exception.problems[0])

    def test_a_token_is_one_word_of_printable_ascii(self) -> None:
        for content in ("", "\n", "two words", "two\nlines", "ä", "x" * 4097, "tab\t"):
            file = self.token_file(content)
            self.assert_problems(
                self.text(f'[admin]\ntoken_file = "{file}"'), f"admin.token_file: {file}: "
            )
        for content in ("x" * 4096, "b64_~-./+=="):
            settings = self.admin(f'token_file = "{self.token_file(content)}"')
            self.assertEqual(settings.operator.token, content)
