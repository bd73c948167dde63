"""A real ActiveMQ with a configuration for tests, and a JMS client."""

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
    """Skip or fail the test if the broker or the JDK is missing."""
    need((HOME / "bin/activemq.jar").exists(), "Debian's activemq (tests/integration/install.sh)")
    need(shutil.which("javac"), "javac (tests/integration/install.sh)")


class ActiveMQ:
    """One broker on free ports, without persistence.

    Args:
        user: the user name and the password that clients need; None: no login.
        key_store: a PKCS #12 file and its password, for STOMP over TLS; None: no TLS.
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
        """Start the broker; fires when both ports are open, with the seconds that this took."""
        self.program.start()
        return (yield until(self._listens, "ActiveMQ listens", 120))

    def _listens(self) -> bool:
        assert self.program.runs, self.program.log
        return listens(self.stomp) and listens(self.openwire)

    def remove(self) -> None:
        """Kill the broker and remove its files."""
        self.program.kill()
        shutil.rmtree(self._directory, ignore_errors=True)


@dataclass(frozen=True)
class JmsMessage:
    """A message that the JMS client has received."""

    topic: str
    cell: str
    message_id: str
    delivery_mode: str
    time_to_live: int
    text: str


class JmsPeer(ProcessProtocol):
    """The Java program jms/Peer.java, which uses the broker in the same way as a unit.

    Attributes:
        messages: the received messages.
        others: other lines of its output.
    """

    _classes: Path | None = None

    def __init__(self, broker: ActiveMQ) -> None:
        self.messages: list[JmsMessage] = []
        self.others: list[str] = []
        self._errors = b""
        self._rest = b""
        self._expected: list[tuple[str, Deferred[list[str]]]] = []
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
        return self._command("subscribed", "subscribe", topic)

    def send(self, topic: str, cell: str, text: str) -> Deferred[list[str]]:
        return self._command("sent", "send", topic, _encode(cell), _encode(text))

    def send_odd(self, topic: str, cell: str, text: str) -> Deferred[list[str]]:
        return self._command("sent", "odd", topic, _encode(cell), _encode(text))

    def send_bytes(self, topic: str, text: str) -> Deferred[list[str]]:
        return self._command("sent", "bytes", topic, _encode(text))

    def send_many(self, topic: str, cell: str, count: int) -> Deferred[list[str]]:
        return self._command("sent", "many", topic, _encode(cell), str(count))

    def topics(self) -> Deferred[list[str]]:
        return self._command("topics", "topics")

    def _command(self, reply: str, *words: str) -> Deferred[list[str]]:
        """Send a command; fires with the words that follow `reply` in the output."""
        expected = self._expect(reply)
        self.transport.write(" ".join(words).encode() + b"\n")
        return expected

    def _expect(self, word: str) -> Deferred[list[str]]:
        reply: Deferred[list[str]] = Deferred()
        self._expected.append((word, reply))
        return reply

    def outReceived(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            word, *rest = line.decode().split(" ")
            if word == "message":
                topic, cell, message_id, mode, time_to_live, text = rest
                message = topic, _decode(cell), message_id, mode, int(time_to_live), _decode(text)
                self.messages.append(JmsMessage(*message))
            elif self._expected and word == self._expected[0][0]:
                self._expected.pop(0)[1].callback(rest)
            else:
                self.others.append(line.decode())

    def errReceived(self, data: bytes) -> None:
        self._errors += data

    def processEnded(self, reason: Any) -> None:
        for _, reply in self._expected:
            reply.errback(AssertionError(self._errors.decode()))
        self._ended.callback(None)

    @classmethod
    def _compiled(cls) -> Path:
        """The directory of the compiled program; it is compiled once per test run."""
        if cls._classes is None:
            cls._classes = Path(tempfile.mkdtemp(prefix="topicsvc-jms-"))
            atexit.register(shutil.rmtree, cls._classes, ignore_errors=True)
            source = Path(__file__).parent.parent / "jms" / "Peer.java"
            jars = f"{JARS}/activemq-client.jar:{JARS}/geronimo-jms_1.1_spec.jar"
            command = ["javac", "-d", str(cls._classes), "-cp", jars, str(source)]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        return cls._classes


def _encode(text: str) -> str:
    return base64.b64encode(text.encode("utf-16-be", "surrogatepass")).decode()


def _decode(word: str) -> str:
    return base64.b64decode(word).decode("utf-16-be", "surrogatepass")
