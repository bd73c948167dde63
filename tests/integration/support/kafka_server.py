"""A real Kafka, one node or three in KRaft mode, from the artifacts that install.sh fetches."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, NewTopic
from twisted.internet.defer import gatherResults, inlineCallbacks
from twisted.internet.threads import deferToThread

from tests.integration.support.requirements import need
from tests.support.processes import Program, free_port, listens, until

JARS = Path(__file__).parent.parent / "kafka" / "jars"

_PROPERTIES = """\
process.roles={roles}
node.id={node}
controller.quorum.voters=1@127.0.0.1:{controller}
listeners={listeners}
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

# A dead node is replaced after 4 s instead of 9 s, and a replica that does not follow after 2 s
# instead of 30 s. A loaded machine may not run a node for a second.
_CLUSTER_PROPERTIES = {
    "broker.session.timeout.ms": "4000",
    "broker.heartbeat.interval.ms": "300",
    "replica.lag.time.max.ms": "2000",
    "num.network.threads": "1",
    "num.io.threads": "2",
    "log.cleaner.enable": "false",
}


def need_kafka() -> None:
    """Skip or fail the test if Kafka or Java is missing."""
    need(any(JARS.glob("kafka_*.jar")), "Kafka's artifacts (tests/integration/install.sh)")
    need(shutil.which("java"), "java (tests/integration/install.sh)")


@inlineCallbacks
def create_topic(admin: AdminClient, name: str, partitions: int = 1) -> Any:
    """Create a topic, unless a reader's request has created it after it was deleted.

    Fires when the broker knows the topic: the controller, which answers, tells it later.
    """
    [made] = admin.create_topics([NewTopic(name, partitions, 1)]).values()
    try:
        yield deferToThread(made.result)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise
    yield until_it_has(admin, name, partitions)


def until_it_has(admin: AdminClient, name: str, partitions: int) -> Any:
    """Fires when the broker knows so many partitions of a topic."""

    def has_them() -> bool:
        try:
            topic = admin.list_topics(name, timeout=5).topics[name]
        except KafkaException:
            return False
        return topic.error is None and len(topic.partitions) == partitions

    return until(has_them, f"{partitions} partitions of {name}", 60)


@inlineCallbacks
def delete_topic(admin: AdminClient, name: str) -> Any:
    """Delete a topic; fires when the broker no longer has it, or has another with its name."""
    before = _topic_id(admin, name)
    assert before is not None, name
    [deleted] = admin.delete_topics([name]).values()
    yield deferToThread(deleted.result)
    yield until(lambda: _topic_id(admin, name) != before, f"{name} is deleted", 60)


def _topic_id(admin: AdminClient, name: str) -> str | None:
    """The id of a topic; None: there is none with this name."""
    [described] = admin.describe_topics(TopicCollection([name])).values()
    try:
        return str(described.result(30).topic_id)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise
        return None


class Kafka:
    """One broker on free ports.

    Args:
        settings: further properties of the broker.
        protocol: the security protocol of its listener for clients.
        node: its number in its cluster; node 1 is also the only controller.
        controller: the port of the controller; None: a free one.
        heap: most memory of Java's heap.
    """

    def __init__(
        self,
        settings: Mapping[str, str] | None = None,
        protocol: str = "PLAINTEXT",
        node: int = 1,
        controller: int | None = None,
        heap: str = "512m",
    ) -> None:
        need_kafka()
        # To create a topic takes Kafka 30 ms on a disk, and 3 ms in memory.
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self._directory = Path(tempfile.mkdtemp(prefix="topicsvc-kafka-", dir=memory))
        atexit.register(self.remove)
        self.port = free_port()
        self.controller = controller or free_port()
        self._properties = self._directory / "server.properties"
        listeners = f"CLIENT://127.0.0.1:{self.port}"
        if node == 1:
            listeners += f",CONTROLLER://127.0.0.1:{self.controller}"
        text = _PROPERTIES.format(
            roles="broker,controller" if node == 1 else "broker",
            node=node,
            listeners=listeners,
            port=self.port,
            controller=self.controller,
            protocol=protocol,
            directory=self._directory,
        )
        more = "".join(f"{key}={value}\n" for key, value in (settings or {}).items())
        self._properties.write_text(text + more)
        java = ["java", f"-Xmx{heap}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
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
            yield deferToThread(
                subprocess.run,
                [*tool, "-c", str(self._properties)],
                check=True,
                capture_output=True,
                timeout=120,
            )
        self.program.start()
        return (yield until(self._listens, "Kafka listens", 120))

    def _listens(self) -> bool:
        assert self.program.runs, self.program.log
        return listens(self.port)

    def remove(self) -> None:
        """Kill the broker and remove its files."""
        self.program.kill()
        shutil.rmtree(self._directory, ignore_errors=True)


class KafkaCluster:
    """Three brokers, of which the first is the controller.

    Args:
        settings: further properties of each broker.
    """

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        properties = {**_CLUSTER_PROPERTIES, **(settings or {})}
        first = Kafka(properties, heap="192m")
        others = [
            Kafka(properties, node=node, controller=first.controller, heap="192m")
            for node in (2, 3)
        ]
        self.nodes = {1: first, 2: others[0], 3: others[1]}

    @property
    def bootstrap(self) -> str:
        return ",".join(node.bootstrap for node in self.nodes.values())

    @property
    def settings(self) -> str:
        return f'kind = "kafka"\nbootstrap = "{self.bootstrap}"'

    @property
    def program(self) -> Program:
        """The controller."""
        return self.nodes[1].program

    @inlineCallbacks
    def start(self) -> Any:
        """Start the brokers that do not run; fires when the ports of all are open."""
        stopped = [node for node in self.nodes.values() if not node.program.runs]
        yield gatherResults([node.start() for node in stopped])

    def remove(self) -> None:
        """Kill all brokers and remove their files."""
        for node in self.nodes.values():
            node.remove()
