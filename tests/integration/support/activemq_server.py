"""A real ActiveMQ, started by hand with a configuration of the tests' own, and a JMS peer."""

from __future__ import annotations

import atexit
import base64
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.protocol import ProcessProtocol

from tests.integration.support.requirements import need
from tests.support.processes import Program, free_port, listens, until

HOME = Path("/usr/share/activemq")
JARS = Path("/usr/share/java")

_CONFIGURATION = """\
<beans xmlns="http://www.springframework.org/schema/beans"
    xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
    xsi:schemaLocation="http://www.springframework.org/schema/beans
      http://www.springframework.org/schema/beans/spring-beans.xsd
      http://activemq.apache.org/schema/core
      http://activemq.apache.org/schema/core/activemq-core.xsd">
  <broker xmlns="http://activemq.apache.org/schema/core" brokerName="tests"
      persistent="false" useJmx="false" dataDirectory="{directory}/data">
    {plugins}
    {tls}
    <transportConnectors>
      <transportConnector name="stomp" uri="{scheme}://127.0.0.1:{stomp}"/>
      <transportConnector name="openwire" uri="tcp://127.0.0.1:{openwire}"/>
    </transportConnectors>
  </broker>
</beans>
"""

_PLUGINS = """<plugins><simpleAuthenticationPlugin><users>
      <authenticationUser username="{username}" password="{password}" groups="users"/>
    </users></simpleAuthenticationPlugin></plugins>"""

_TLS = """<sslContext>
      <sslContext keyStore="file:{key_store}" keyStorePassword="{password}"/>
    </sslContext>"""


def need_activemq() -> None:
    """Skip or fail the test where the broker or the JDK is missing."""
    need((HOME / "bin/activemq.jar").exists(), "Debian's activemq (tests/integration/install.sh)")
    need(shutil.which("javac"), "javac (tests/integration/install.sh)")


class ActiveMQ:
    """One broker on ports of its own. It keeps nothing on disk.

    Args:
        user: the only one who may connect, and the password; None: anybody.
        key_store: a PKCS #12 file and its password: STOMP is then spoken over TLS.
    """

    def __init__(
        self,
        user: tuple[str, str] | None = None,
        key_store: tuple[Path, str] | None = None,
    ) -> None:
        need_activemq()
        self._directory = Path(tempfile.mkdtemp(prefix="topicsvc-activemq-"))
        atexit.register(self.remove)
        self.stomp, self.openwire = free_port(), free_port()
        (self._directory / "conf").mkdir()
        configuration = self._directory / "conf/activemq.xml"
        configuration.write_text(
            _CONFIGURATION.format(
                directory=self._directory,
                plugins=_PLUGINS.format(username=user[0], password=user[1]) if user else "",
                tls=_TLS.format(key_store=key_store[0], password=key_store[1]) if key_store else "",
                scheme="stomp+ssl" if key_store else "stomp",
                stomp=self.stomp,
                openwire=self.openwire,
            )
        )
        self.program = Program(
            [
                "java",
                "-Xmx384m",
                f"-Dactivemq.home={HOME}",
                f"-Dactivemq.base={self._directory}",
                f"-Dactivemq.conf={self._directory}/conf",
                f"-Dactivemq.data={self._directory}/data",
                "-jar",
                f"{HOME}/bin/activemq.jar",
                "start",
                f"xbean:file:{configuration}",
            ],
            self._directory / "log",
        )

    @property
    def settings(self) -> str:
        return f'kind = "activemq"\nendpoint = "tcp:127.0.0.1:{self.stomp}"'

    @inlineCallbacks
    def start(self) -> Any:
        """Start it; fires when both ports answer, with how many seconds that took."""
        self.program.start()
        return (yield until(self._answers, "ActiveMQ answers", 60))

    def _answers(self) -> bool:
        assert self.program.runs, self.program.log
        return listens(self.stomp) and listens(self.openwire)

    def remove(self) -> None:
        """End it and leave nothing behind."""
        self.program.kill()
        shutil.rmtree(self._directory, ignore_errors=True)


@dataclass(frozen=True)
class JmsMessage:
    """What the JMS peer was given."""

    topic: str
    cell: str
    message_id: str
    delivery_mode: str
    time_to_live: int
    text: str


class JmsPeer(ProcessProtocol):
    """The Java program jms/Peer.java, which speaks to the broker as a unit does."""

    _classes: Path | None = None

    def __init__(self, broker: ActiveMQ) -> None:
        self.messages: list[JmsMessage] = []
        self.others: list[str] = []
        self._errors = b""
        self._rest = b""
        self._answers: list[tuple[str, Deferred[list[str]]]] = []
        self._ended: Deferred[None] = Deferred()
        jars = ("activemq-client", "geronimo-jms_1.1_spec", "geronimo-j2ee-management-1.1-spec")
        jars += ("hawtbuf", "slf4j-api", "slf4j-nop")
        self._classpath = ":".join([str(self._compiled()), *(f"{JARS}/{jar}.jar" for jar in jars)])
        self._url = f"tcp://127.0.0.1:{broker.openwire}"

    def start(self) -> Deferred[list[str]]:
        ready = self._expect("ready")
        command = ["java", "-Xmx128m", "-cp", self._classpath, "Peer", self._url]
        reactor.spawnProcess(self, shutil.which("java"), command, env=None)
        return ready

    def stop(self) -> Deferred[None]:
        self.transport.signalProcess("KILL")
        return self._ended

    def subscribe(self, topic: str) -> Deferred[list[str]]:
        return self._ask("subscribed", "subscribe", topic)

    def send(self, topic: str, cell: str, text: str) -> Deferred[list[str]]:
        return self._ask("sent", "send", topic, _encode(cell), _encode(text))

    def send_odd(self, topic: str, cell: str, text: str) -> Deferred[list[str]]:
        return self._ask("sent", "odd", topic, _encode(cell), _encode(text))

    def send_bytes(self, topic: str, text: str) -> Deferred[list[str]]:
        return self._ask("sent", "bytes", topic, _encode(text))

    def send_many(self, topic: str, cell: str, count: int) -> Deferred[list[str]]:
        return self._ask("sent", "many", topic, _encode(cell), str(count))

    def topics(self) -> Deferred[list[str]]:
        return self._ask("topics", "topics")

    def _ask(self, answer: str, *words: str) -> Deferred[list[str]]:
        expected = self._expect(answer)
        self.transport.write(" ".join(words).encode() + b"\n")
        return expected

    def _expect(self, word: str) -> Deferred[list[str]]:
        answer: Deferred[list[str]] = Deferred()
        self._answers.append((word, answer))
        return answer

    def outReceived(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            word, *rest = line.decode().split(" ")
            if word == "message":
                topic, cell, message_id, mode, life, text = rest
                self.messages.append(
                    JmsMessage(topic, _decode(cell), message_id, mode, int(life), _decode(text))
                )
            elif self._answers and word == self._answers[0][0]:
                self._answers.pop(0)[1].callback(rest)
            else:
                self.others.append(line.decode())

    def errReceived(self, data: bytes) -> None:
        self._errors += data

    def processEnded(self, reason: Any) -> None:
        for _, answer in self._answers:
            answer.errback(AssertionError(self._errors.decode()))
        self._ended.callback(None)

    @classmethod
    def _compiled(cls) -> Path:
        """Where the compiled peer is; it is compiled once a run."""
        if cls._classes is None:
            cls._classes = Path(tempfile.mkdtemp(prefix="topicsvc-jms-"))
            atexit.register(shutil.rmtree, cls._classes, ignore_errors=True)
            source = Path(__file__).parent.parent / "jms" / "Peer.java"
            jars = f"{JARS}/activemq-client.jar:{JARS}/geronimo-jms_1.1_spec.jar"
            command = ["javac", "-d", str(cls._classes), "-cp", jars, str(source)]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        return cls._classes


def _encode(text: str) -> str:
    return base64.b64encode(text.encode("utf-16-be", "surrogatepass")).decode()


def _decode(word: str) -> str:
    return base64.b64decode(word).decode("utf-16-be", "surrogatepass")
