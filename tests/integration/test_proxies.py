"""The service behind nginx and HAProxy, with the files of examples/ and other ports and paths."""

from __future__ import annotations

import http.client
import http.server
import json
import os
import re
import shutil
import socket
import threading
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.support.requirements import need
from tests.support.certificates import Authority
from tests.support.processes import Process, TwistdProcess, free_port, listens
from tests.support.websocket_client import WebSocketClient
from topicsvc.validators.local import make_key, sign_token, write_key

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
DOCS = EXAMPLES.parent / "docs"
PING_INTERVAL = 1.0
PROXY_TIMEOUT = "5s"
"""In place of the 150 s of the examples: even a late ping comes before."""

WEBSOCKET_PATH = "/__topic/box1/col.topic.name"
SEND_PATH = "/box1/col/topic/name"
TOPIC = "/cell1/box1/col/topic/name"
SOURCE = "127.0.0.77"
"""The address of the client, which differs from the proxy's."""

URL_FORMS = (("cell1.unit1.example", ""), ("unit1.example", "/cell1"))


class Unit(http.server.ThreadingHTTPServer):
    """A web server in place of the unit; its responses name it."""

    def __init__(self) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = f"the unit: {self.headers['Host']}{self.path}".encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_OPTIONS = do_GET

            def log_message(self, *_: object) -> None: ...

        super().__init__(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.serve_forever)
        self.thread.start()

    def stop(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


class ProxyTestCase(SynchronousTestCase):
    """Fixture: a token key, certificates and a unit; a subclass starts services and a proxy."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.key = make_key()
        write_key(self.directory / "key", self.key)
        self.authority = Authority(self.directory)
        self.context = self.authority.client_context()
        self.key_pem, self.cert_pem = self.authority.issue("unit1.example", "*.unit1.example")
        self.unit = Unit()
        self.addCleanup(self.unit.stop)
        self.port = free_port()

    def start(self, number: int, endpoint: str, port: int, admin: int) -> TwistdProcess:
        """Start a service on an endpoint, in which ``{port}`` stands for the port."""
        file = self.directory / f"topicsvc{number}.toml"
        file.write_text(
            f"""
            listen = ["{endpoint.format(port=port)}:interface=127.0.0.1"]
            admin = "tcp:{admin}:interface=127.0.0.1"
            unit_url = "https://unit1.example/"
            [session]
            ping_interval = {PING_INTERVAL}
            [validator]
            kind = "local"
            key_file = "{self.directory / "key"}"
            [limits]
            trusted_proxies = ["127.0.0.1"]
            [stop]
            drain = 0
            """
        )
        service = TwistdProcess("--config", str(file), directory=self.directory)
        self.addCleanup(service.stop)
        return service

    def run_proxy(self, *command: str) -> Process:
        proxy = Process(command)
        self.addCleanup(proxy.stop)
        deadline = time.monotonic() + 60
        while not listens(self.port):
            self.assertIsNone(proxy.child.poll(), proxy.text)
            self.assertLess(time.monotonic(), deadline, proxy.text)
            time.sleep(0.05)
        return proxy

    def substituted(self, example: str, *pairs: tuple[str, str]) -> str:
        """Return the example with the ports and paths of this test."""
        text = (EXAMPLES / example).read_text("utf-8")
        for before, after in pairs:
            self.assertIn(before, text)
            text = text.replace(before, after)
        return text

    def token(self) -> str:
        return sign_token(self.key, "https://cell2.unit1.example/#me", [TOPIC],
                          ["receive", "send"], 2**31)  # fmt: skip

    def join(self, host: str, prefix: str) -> WebSocketClient:
        client = WebSocketClient(self.port, host, prefix + WEBSOCKET_PATH, self.context, SOURCE)
        self.addCleanup(client.close)
        client.send(json.dumps({"AccessToken": self.token()}))
        self.assertEqual(json.loads(client.recv())["Result"], "Success")
        return client

    def request(self, method: str, host: str, path: str, body: bytes = b"") -> tuple[int, str]:
        """Send an HTTP request; return the status and the body of the response."""
        raw = socket.create_connection(("127.0.0.1", self.port), 60, (SOURCE, 0))
        with self.context.wrap_socket(raw, server_hostname=host) as stream:
            head = (
                f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
                f"Authorization: Bearer {self.token()}\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            stream.sendall(head.encode() + body)
            response = http.client.HTTPResponse(stream)
            response.begin()
            return response.status, response.read().decode()

    def assert_both_url_forms(self) -> None:
        for host, prefix in URL_FORMS:
            client = self.join(host, prefix)
            status, _ = self.request("POST", host, prefix + SEND_PATH, b'{"by":"POST"}')
            self.assertEqual(status, 200)
            self.assertEqual(json.loads(client.recv())["Body"], {"by": "POST"})

    def assert_other_requests_reach_the_unit(self) -> None:
        for method, path in (("GET", "/cell1/"), ("GET", SEND_PATH), ("OPTIONS", SEND_PATH)):
            status, body = self.request(method, "unit1.example", path)
            self.assertEqual((status, body), (200, f"the unit: unit1.example{path}"))

    def assert_stays_open(self, client: WebSocketClient, seconds: float) -> None:
        """A session without messages stays open, because of its pings."""
        client.wait(seconds)
        status, _ = self.request("POST", "cell1.unit1.example", SEND_PATH, b'"later"')
        self.assertEqual(status, 200)
        self.assertEqual(json.loads(client.recv())["Body"], "later")


class NginxTests(ProxyTestCase):
    def setUp(self) -> None:
        need(shutil.which("nginx"), "nginx (tests/integration/install.sh)")
        super().setUp()
        self.service_port = free_port()
        self.service = self.start(1, "tcp:{port}", self.service_port, free_port())
        (self.directory / "site.conf").write_text(self.site)
        (self.directory / "nginx.conf").write_text(
            f"""
            daemon off; worker_processes 1; pid {self.directory}/nginx.pid;
            error_log stderr warn;
            events {{ worker_connections 200; }}
            http {{
                access_log off;
                client_body_temp_path {self.directory}/body;
                proxy_temp_path {self.directory}/proxy;
                fastcgi_temp_path {self.directory}/fastcgi;
                uwsgi_temp_path {self.directory}/uwsgi;
                scgi_temp_path {self.directory}/scgi;
                include {self.directory}/site.conf;
            }}
            """
        )
        self.run_proxy("nginx", "-c", f"{self.directory}/nginx.conf", "-p", str(self.directory))

    @property
    def site(self) -> str:
        """The configuration of the servers."""
        return self.substituted(
            "nginx/topicsvc.conf",
            ("443 ssl", f"127.0.0.1:{self.port} ssl"),
            ("127.0.0.1:8081", f"127.0.0.1:{self.service_port}"),
            ("127.0.0.1:8080", f"127.0.0.1:{self.unit.server_port}"),
            ("/etc/topicsvc/tls/fullchain.pem", str(self.cert_pem)),
            ("/etc/topicsvc/tls/privkey.pem", str(self.key_pem)),
            ("150s", PROXY_TIMEOUT),
        )

    def test_both_url_forms_and_the_unit(self) -> None:
        self.assert_both_url_forms()
        self.assert_other_requests_reach_the_unit()
        self.service.wait_for(rf"{re.escape(SOURCE)}\b.*/cell1/box1/col/topic/name")

    def test_a_session_outlives_the_timeout_of_the_proxy(self) -> None:
        self.assert_stays_open(self.join(*URL_FORMS[0]), 8 * PING_INTERVAL)

    def test_the_timeout_of_the_example_is_longer_than_two_pings(self) -> None:
        text = (EXAMPLES / "nginx/topicsvc.conf").read_text()
        for seconds in re.findall(r"proxy_(?:read|send)_timeout (\d+)s;", text):
            self.assertGreater(int(seconds), 120)


class NginxBesideUnitTests(NginxTests):
    """The configuration of docs/validators.md, in the server of a unit that rewrites URLs."""

    @property
    def site(self) -> str:
        page = (DOCS / "validators.md").read_text("utf-8")
        step4, step5 = re.findall(r"```nginx\n(.*?)```", page, re.DOTALL)
        unit = f"""
            listen 127.0.0.1:{self.port} ssl;
            server_name unit1.example *.unit1.example;
            ssl_certificate {self.cert_pem};
            ssl_certificate_key {self.key_pem};
            error_page 404 /not-found;
            location / {{
                error_page 403 /forbidden;
                rewrite ^(.*)$ /personium-core$1 break;
                proxy_pass http://127.0.0.1:{self.unit.server_port};
                proxy_set_header Host $http_host;
            }}
            """
        # Both blocks belong to one server.
        top4, _, server4 = step4.partition("server {\n")
        top5, _, server5 = step5.partition("server {\n")
        locations = server4[server4.index("    # /__topic/") :].rstrip().removesuffix("}")
        text = f"{top4}{top5}server {{ {unit} {locations} {server5}"
        self.assertEqual(text.count("127.0.0.1:8081"), 2)
        text = text.replace("127.0.0.1:8081", f"127.0.0.1:{self.service_port}")
        return text.replace("150s", PROXY_TIMEOUT)

    def assert_other_requests_reach_the_unit(self) -> None:
        for method, path in (("GET", "/cell1/"), ("GET", SEND_PATH), ("OPTIONS", SEND_PATH)):
            status, body = self.request(method, "unit1.example", path)
            expected = f"the unit: unit1.example/personium-core{path}"
            self.assertEqual((status, body), (200, expected))

    def test_both_url_forms_and_the_unit(self) -> None:
        self.assert_both_url_forms()
        self.assert_other_requests_reach_the_unit()
        client = self.join(*URL_FORMS[0])
        for path in (f"{SEND_PATH}('key')", f"{SEND_PATH}/", f"{SEND_PATH}?x=y"):
            status, _ = self.request("PUT", "cell1.unit1.example", path, b'{"by":"PUT"}')
            self.assertEqual(status, 200, path)
            self.assertEqual(json.loads(client.recv())["Body"], {"by": "PUT"})
        status, body = self.request("POST", "cell1.unit1.example", SEND_PATH, b"not JSON")
        self.assertEqual((status, json.loads(body)["code"]), (400, "PR400-OD-0001"))


class HAProxyTests(ProxyTestCase):
    def setUp(self) -> None:
        need(shutil.which("haproxy"), "haproxy (tests/integration/install.sh)")
        super().setUp()
        (self.directory / "both.pem").write_bytes(
            self.cert_pem.read_bytes() + self.key_pem.read_bytes()
        )
        ports = [free_port() for _ in range(2)]
        admins = [free_port() for _ in range(2)]
        self.services = [
            self.start(number, endpoint, ports[number], admins[number])
            for number, endpoint in enumerate(self.endpoints())
        ]
        both = self.directory / "both.pem"
        self.file = self.directory / "haproxy.cfg"
        rights = "    user haproxy\n    group haproxy\n"
        self.file.write_text(
            self.substituted(
                "haproxy/haproxy.cfg",
                # Only root can change user and group.
                (rights, rights if os.geteuid() == 0 else ""),
                (":443 ssl", f"127.0.0.1:{self.port} ssl"),
                # A busy process may answer a check late.
                ("timeout connect 5s", "timeout connect 5s\n    timeout check 60s"),
                ("127.0.0.1:8081", f"127.0.0.1:{ports[0]}"),
                ("127.0.0.1:8082", f"127.0.0.1:{ports[1]}"),
                ("port 9091", f"port {admins[0]}"),
                ("port 9092", f"port {admins[1]}"),
                ("127.0.0.1:8080", f"127.0.0.1:{self.unit.server_port}"),
                ("/etc/topicsvc/tls/both.pem", str(both)),
                ("maxconn 40000", "maxconn 100"),
                ("150s", PROXY_TIMEOUT),
                ("send-proxy-v2 check", f"send-proxy-v2 {self.encryption()} check"),
            )
        )

    def endpoints(self) -> tuple[str, str]:
        """The endpoints of the two services."""
        return "haproxy:tcp:{port}", "haproxy:tcp:{port}"

    def encryption(self) -> str:
        """The options of HAProxy's connections to the services."""
        return ""

    def test_both_url_forms_and_the_unit(self) -> None:
        # Without a shared broker, two processes do not exchange messages.
        self.services[1].stop()
        self.run_proxy("haproxy", "-db", "-f", str(self.file))
        self.assert_both_url_forms()
        self.assert_other_requests_reach_the_unit()
        self.assert_stays_open(self.join(*URL_FORMS[0]), 8 * PING_INTERVAL)
        address = re.escape(SOURCE)
        self.services[0].wait_for(rf"{address}:\d+ .*/cell1/box1/col/topic/name")
        self.assertNotRegex(self.services[0].text, r" 127\.0\.0\.1:\d+ ")

    def test_a_stopped_process_gets_no_new_connections(self) -> None:
        self.run_proxy("haproxy", "-db", "-f", str(self.file))
        before = [self.join(*URL_FORMS[0]) for _ in range(4)]
        self.assertEqual(len(before), 4)
        self.services[0].stop()
        for _ in range(4):
            self.join(*URL_FORMS[1])


class EncryptedHAProxyTests(HAProxyTests):
    """HAProxy encrypts its connections again, and sends the PROXY header before TLS."""

    def endpoints(self) -> tuple[str, str]:
        pems = self.directory / "pems"
        pems.mkdir()
        both = pems / "both.pem"
        both.write_bytes((self.directory / "both.pem").read_bytes())
        return f"haproxy:ssl:{{port}}:privateKey={both}", f"haproxy:tls:{pems}:port={{port}}"

    def encryption(self) -> str:
        trusted = self.authority.ca_file
        # The check is made on the admin port, which has no TLS.
        return f"ssl verify required ca-file {trusted} sni str(unit1.example) no-check-ssl"
