"""How many processes serve clients: the setting, the option, and the broker that they need."""

from __future__ import annotations

from pathlib import Path

from tests.unit.config.test_config import ConfigTestCase
from topicsvc import config
from topicsvc.config import workers
from topicsvc.errors import ConfigError
from topicsvc.settings import Config

REDIS = '[broker]\nkind = "redis"\nurl = "redis://localhost"'


class WorkersTests(ConfigTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.processors = 6
        self.patch(workers.read_workers, "__defaults__", (lambda: self.processors,))

    def workers(self, value: str, option: str | None = None, broker: str = REDIS) -> int:
        top = f"workers = {value}" if value else ""
        return config.load(self.text(broker, top=top), workers=option).workers

    def problem(self, value: str, option: str | None = None, broker: str = REDIS) -> str:
        [problem] = self.assertRaises(ConfigError, self.workers, value, option, broker).problems
        self.assertNotIn("\n", problem)
        return str(problem)

    def test_the_default_is_one(self) -> None:
        self.assertEqual(self.workers(""), 1)
        self.assertEqual(self.workers("", broker=""), 1)

    def test_a_number_from_1_to_64(self) -> None:
        self.assertEqual([self.workers("1"), self.workers("64")], [1, 64])
        for wrong in ("0", "65", "-1", "2.0", "true", '"4"', '"all"', "[4]"):
            problem = self.problem(wrong)
            self.assertIn('workers: must be "auto" or a whole number from 1 to 64', problem)

    def test_auto_is_one_for_each_processor_and_64_at_most(self) -> None:
        self.assertEqual(self.workers('"auto"'), 6)
        self.processors = 1
        self.assertEqual(self.workers('"auto"'), 1)
        self.processors = 100
        self.assertEqual(self.workers('"auto"'), 64)

    def test_the_option_overrides_the_file(self) -> None:
        self.assertEqual(self.workers("4", "2"), 2)
        self.assertEqual(self.workers("4", "auto"), 6)
        self.assertEqual(self.workers("", "3"), 3)
        for wrong in ("0", "65", "x", "٣", "9" * 5000):
            self.assertIn("is not a number of workers; allowed:", self.problem("4", wrong))

    def test_a_problem_of_the_option_names_the_option(self) -> None:
        file = Path(self.mktemp())
        file.write_text(self.text())
        error = self.assertRaises(ConfigError, config.read, file, workers="2")
        self.assertTrue(error.problems[0].startswith("--workers: 2 processes need a broker"))

    def test_a_memory_broker_is_refused_in_one_line_that_names_the_smallest_way(self) -> None:
        for broker in ("", '[broker]\nkind = "memory"'):
            problem = self.problem("4", broker=broker)
            for part in (
                '4 processes need a broker that they share, and broker.kind is "memory"',
                "apt-get install redis-server",
                '[broker], kind = "redis", url = "redis://localhost"',
            ):
                self.assertIn(part, problem)
        self.processors = 2
        self.assertIn("2 processes need", self.problem('"auto"', broker=""))
        self.processors = 1
        self.assertEqual(self.workers('"auto"', broker=""), 1)

    def test_the_lines_of_the_advice_are_valid_settings(self) -> None:
        advice = str(workers.memory_problem(2)).rpartition("in the file: ")[2]
        lines = advice.replace(", ", "\n")
        self.assertEqual(self.workers("2", broker=lines), 2)

    def test_a_broker_with_a_problem_of_its_own_has_only_that(self) -> None:
        problem = self.problem("2", broker='[broker]\nkind = "redis"\nurl = "x"')
        self.assertTrue(problem.startswith("broker.url: "), problem)

    def test_other_brokers_can_be_shared(self) -> None:
        activemq = '[broker]\nkind = "activemq"\nendpoint = "tcp:localhost:61613"'
        self.assertEqual(self.workers("2", broker=activemq), 2)

    def test_a_config_has_one_worker(self) -> None:
        self.assertEqual(Config.__dataclass_fields__["workers"].default, 1)
