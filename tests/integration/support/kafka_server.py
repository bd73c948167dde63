"""A real Kafka, one node in KRaft mode, from the artifacts that install.sh fetches."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.internet.defer import inlineCallbacks

from tests.integration.support.requirements import need
from tests.support.processes import Program, free_port, listens, until

JARS = Path(__file__).parent.parent / "kafka" / "jars"

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=CLIENT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=CLIENT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=CLIENT
listener.security.protocol.map=CLIENT:{protocol},CONTROLLER:PLAINTEXT
log.dirs={directory}/data
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
"""


def need_kafka() -> None:
    """Skip or fail the test if Kafka or Java is missing."""
    need(any(JARS.glob("kafka_*.jar")), "Kafka's artifacts (tests/integration/install.sh)")
    need(shutil.which("java"), "java (tests/integration/install.sh)")


class Kafka:
    """One broker on free ports.

    Args:
        settings: further properties of the broker.
        protocol: the security protocol of its listener for clients.
    """

    def __init__(
        self, settings: Mapping[str, str] | None = None, protocol: str = "PLAINTEXT"
    ) -> None:
        need_kafka()
        # To create a topic takes Kafka 30 ms on a disk, and 3 ms in memory.
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self._directory = Path(tempfile.mkdtemp(prefix="topicsvc-kafka-", dir=memory))
        atexit.register(self.remove)
        self.port = free_port()
        self._properties = self._directory / "server.properties"
        text = _PROPERTIES.format(
            port=self.port, controller=free_port(), protocol=protocol, directory=self._directory
        )
        more = "".join(f"{key}={value}\n" for key, value in (settings or {}).items())
        self._properties.write_text(text + more)
        java = ["java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        self._java = [*java, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{JARS}/*"]
        self.program = Program(
            [*self._java, "kafka.Kafka", str(self._properties)], self._directory / "log"
        )

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def settings(self) -> str:
        return f'kind = "kafka"\nbootstrap = "{self.bootstrap}"'

    @inlineCallbacks
    def start(self) -> Any:
        """Start the broker; fires when its port is open, with the seconds that this took."""
        if not (self._directory / "data").exists():
            tool = [*self._java, "kafka.tools.StorageTool", "format", "-t", "A" * 22]
            subprocess.run(
                [*tool, "-c", str(self._properties)], check=True, capture_output=True, timeout=60
            )
        self.program.start()
        return (yield until(self._listens, "Kafka listens", 60))

    def _listens(self) -> bool:
        assert self.program.runs, self.program.log
        return listens(self.port)

    def remove(self) -> None:
        """Kill the broker and remove its files."""
        self.program.kill()
        shutil.rmtree(self._directory, ignore_errors=True)
