"""The plugin, options, starting and stopping the service, and the demo."""

from __future__ import annotations

import io
import os
import re
import resource
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.application.service import IService, IServiceMaker
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.task import deferLater
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.plugin import getPlugins
from twisted.trial.unittest import SynchronousTestCase, TestCase

import topicsvc
from topicsvc import config, demo, logs
from topicsvc import service as service_module
from topicsvc.admission.client_quota import ClientQuota
from topicsvc.errors import ConfigError, TokenInactive
from topicsvc.process.instances import count_locks
from topicsvc.service import Options, TopicService, makeService
from topicsvc.settings import Config, LimitSettings
from topicsvc.validators.local import LocalValidator, make_key, write_key
from topicsvc.web.site import WORK_PER_ITERATION
from topicsvc.workers.parent import ParentService

LOOPBACK = "tcp:0:interface=127.0.0.1"


class PluginTests(SynchronousTestCase):
    def test_twistd_finds_topicsvc(self) -> None:
        [maker] = [each for each in getPlugins(IServiceMaker) if each.tapname == "topicsvc"]
        self.assertIs(maker.options, Options)
        self.assertTrue(IService.providedBy(maker.makeService(self.demo_options())))

    def demo_options(self) -> Options:
        options = Options()
        options.parseOptions(["--demo", "--listen", LOOPBACK])
        return options


class OptionTests(SynchronousTestCase):
    def refused(self, *arguments: str) -> str:
        """Parse wrong options; returns the one line with which the process ends."""
        ended = self.assertRaises(SystemExit, Options().parseOptions, list(arguments))
        self.assertNotIn("\n", ended.code)
        return ended.code

    def test_without_options_there_is_nothing_to_run(self) -> None:
        line = self.refused()
        self.assertTrue(line.startswith("topicsvc: nothing to run: give --config FILE"), line)
        self.assertIn("--demo", line)

    def test_wrong_options(self) -> None:
        self.assertEqual(self.refused("--foo"), "topicsvc: option --foo not recognized")
        self.assertIn("'extra'", self.refused("--demo", "extra"))
        self.assertIn("requires argument", self.refused("--config"))
        self.assertIn("exclude each other", self.refused("--demo", "--config", "x"))
        self.assertEqual(self.refused("--config="), "topicsvc: option --config is empty")
        self.assertEqual(self.refused("--demo", "--admin="), "topicsvc: option --admin is empty")

    def test_listen_is_repeatable(self) -> None:
        options = Options()
        options.parseOptions(["--demo", "--listen", "tcp:1", "--listen", "tcp:2"])
        self.assertEqual(options.settings().listen, ("tcp:1", "tcp:2"))

    def test_the_version(self) -> None:
        out = io.StringIO()
        self.patch(sys, "stdout", out)
        self.assertEqual(self.assertRaises(SystemExit, Options().opt_version).code, 0)
        self.assertEqual(out.getvalue(), f"topicsvc {topicsvc.__version__}\n")

    def start_with(self, **twistd: object) -> str:
        """Return the line with which a start under these options of twistd fails."""
        options = Options()
        options.parent = {"pidfile": "", "nodaemon": 1, **twistd}
        line = self.assertRaises(SystemExit, options.parseOptions, ["--demo"]).code
        self.assertEqual(line.count("\n"), 0)
        return str(line)

    def test_a_second_twistd_in_the_same_directory_is_one_line(self) -> None:
        file = Path(self.mktemp()).absolute()
        file.write_text(str(os.getpid()))
        self.assertEqual(
            self.start_with(pidfile=str(file)),
            f"topicsvc: another twistd runs here already, as process {os.getpid()} (file {file}): "
            f"stop it with kill {os.getpid()}, or give this one twistd's --pidfile=FILE",
        )

    def test_a_directory_that_twistd_cannot_write_to_is_one_line(self) -> None:
        self.patch(os, "access", lambda *_: False)
        self.assertIn("cannot write its pid file", self.start_with(pidfile="twistd.pid"))
        self.assertIn("cannot write its log file", self.start_with(nodaemon=0))
        self.assertIn("x.log", self.start_with(nodaemon=0, logfile="x.log"))

    def test_a_stale_pid_file_and_other_logs_are_no_problem(self) -> None:
        file = Path(self.mktemp())
        for content in ("x", "", "999999999", "9" * 30):
            file.write_text(content)
            for twistd in (
                {"pidfile": str(file), "nodaemon": 1},
                {"pidfile": "", "syslog": 1},
                {"pidfile": "", "logfile": "-"},
                {"pidfile": ""},
            ):
                options = Options()
                options.parent = twistd
                options.parseOptions(["--demo"])

    def test_each_wrong_setting_is_one_line_when_the_start_fails(self) -> None:
        file = Path(self.mktemp())
        file.write_text("nonsense = 1")
        options = Options()
        options.parseOptions(["--config", str(file)])
        lines = self.assertRaises(SystemExit, makeService, options).code.splitlines()
        self.assertEqual(
            [line.split(": ")[:3] for line in lines],
            [
                ["topicsvc", str(file.absolute()), key]
                for key in ("listen", "unit_url", "validator.kind", "nonsense")
            ],
        )

    def test_endpoints_that_cannot_be_used(self) -> None:
        for endpoint in ("nonsense:1", "tcp:port", "tcp:99999", "unix:/tmp/x",
                         "tcp", "", "ssl:443:privateKey=nowhere",
                         "tls:nowhere:port=443", "tcp:1:2:3:4:5"):  # fmt: skip
            options = Options()
            options.parseOptions(["--demo", "--listen", endpoint])
            line = self.assertRaises(SystemExit, makeService, options).code
            self.assertTrue(line.startswith(f"topicsvc: listen: {endpoint!r}: "), line)
            self.assertNotIn("\n", line)


class WorkersTests(SynchronousTestCase):
    """With several workers, twistd gets the parent."""

    def options(self, *arguments: str, **twistd: Any) -> Options:
        key_file, file = Path(self.mktemp()), Path(self.mktemp())
        write_key(key_file, make_key())
        file.write_text(
            f'listen = ["{LOOPBACK}"]\nadmin = "tcp:0"\nunit_url = "https://unit1.example/"\n'
            f'[validator]\nkind = "local"\nkey_file = "{key_file}"\n'
            '[broker]\nkind = "redis"\nurl = "redis://localhost"\n'
        )
        options = Options()
        options.parseOptions(["--config", str(file), *arguments])
        options.parent = twistd
        return options

    def test_the_parent_tells_each_worker_what_it_serves(self) -> None:
        options = self.options("--workers=3", logger=logs.json_lines, nodaemon=True)
        parent = makeService(options)
        assert isinstance(parent, ParentService)
        arguments = parent._arguments(2)
        self.assertEqual((arguments.number, arguments.count, arguments.endpoints), (2, 3, 1))
        self.assertEqual((arguments.logger, arguments.directory), ("json_lines", Path.cwd()))
        self.assertEqual(
            arguments.options,
            (f"--config={options['config']}", f"--listen={LOOPBACK}", "--admin=tcp:0",
             "--workers=3"),
        )  # fmt: skip

    def test_a_log_of_twistd_or_of_another_observer_is_written_by_the_parent(self) -> None:
        for twistd in ({}, {"logfile": "x"}, {"syslog": True}, {"logger": print}):
            parent = makeService(self.options("--workers=2", **twistd))
            assert isinstance(parent, ParentService)
            self.assertEqual(parent._arguments(1).logger, "relay")

    def test_one_worker_has_no_parent(self) -> None:
        self.assertIsInstance(makeService(self.options("--workers=1")), TopicService)
        self.assertIsInstance(makeService(self.options()), TopicService)

    def test_workers_cannot_be_started_in_a_changed_root(self) -> None:
        options = self.options("--workers=2", chroot="/srv")
        line = self.assertRaises(SystemExit, makeService, options).code
        self.assertEqual(
            line, "topicsvc: --chroot: workers cannot be started in it; set workers = 1"
        )

    def test_a_demo_has_one_process(self) -> None:
        for value, expected in (
            ("2", "a demo is one process: leave --workers out"),
            ("auto", "a demo is one process: leave --workers out"),
            ("x", "--workers: 'x' is not a number of workers; allowed: \"auto\" or a whole number"),
        ):
            options = Options()
            options.parseOptions(["--demo", "--workers", value])
            [problem] = self.assertRaises(ConfigError, options.settings).problems
            self.assertTrue(problem.startswith(expected), problem)
        options = Options()
        options.parseOptions(["--demo", "--workers", "1"])
        self.assertEqual(options.settings().workers, 1)

    def test_an_endpoint_that_workers_cannot_share_is_refused(self) -> None:
        options = self.options("--workers=2", "--listen=fd:1")
        error = self.assertRaises(ConfigError, options.settings)
        self.assertTrue(error.problems[0].startswith("--listen: 'fd:1': "), error.problems)


class TopicServiceTests(TestCase):
    def settings(self, text: str = "", *listen: str) -> Config:
        key_file = Path(self.mktemp())
        write_key(key_file, make_key())
        return config.load(
            f"""
            unit_url = "https://unit1.example/"
            {text}
            [validator]
            kind = "local"
            key_file = "{key_file}"
            """,
            listen or [LOOPBACK],
        )

    @inlineCallbacks
    def test_it_listens_while_it_runs(self) -> object:
        service = TopicService(self.settings(f'admin = "{LOOPBACK}"'), reactor)
        self.assertEqual(service.ports, [])
        service.privilegedStartService()
        service.startService()
        self.assertEqual(len(service.ports), 2)
        self.assertEqual(
            service._health_parts(), {"listening": True, "accepting": True, "broker": True}
        )
        yield service.stopService()
        self.assertEqual(service._health_parts()["accepting"], False)

    def test_sessions_and_all_other_clients_have_a_budget_each(self) -> None:
        service = TopicService(self.settings(), reactor)
        context = service.websocket_server.context
        self.assertIs(context.budget, service._site.budget)
        self.assertIsNot(context.session_budget, context.budget)
        budgets = [context.budget._seconds, context.session_budget._seconds]
        self.assertEqual(budgets, [WORK_PER_ITERATION] * 2)

    def test_a_missing_systemd_socket_is_one_problem(self) -> None:
        settings = self.settings("", "systemd:domain=INET:index=0")
        [line] = self.assertRaises(ConfigError, TopicService, settings, reactor).problems
        self.assertIn("start the .socket unit", line)

    @inlineCallbacks
    def test_a_port_in_use_is_one_line_when_the_start_fails(self) -> object:
        first = TopicService(self.settings(), reactor)
        first.privilegedStartService()
        first.startService()
        in_use = f"tcp:{first.ports[0].getHost().port}:interface=127.0.0.1"
        second = TopicService(self.settings("", LOOPBACK, in_use), reactor)
        line = self.assertRaises(SystemExit, second.privilegedStartService).code
        self.assertEqual(line.split(": ")[:3], ["topicsvc", "listen", in_use])
        self.assertIn("in use", line)
        yield second.stopService()
        yield first.stopService()

    @inlineCallbacks
    def test_without_workers_sigusr2_is_one_line_and_the_service_goes_on(self) -> object:
        """By default the signal kills a process: without a drain, and without a line."""
        before = signal.getsignal(signal.SIGUSR2)
        service = TopicService(self.settings(), reactor)
        service.read_settings = self.settings
        lines = self.warnings_of(service)
        service.privilegedStartService()
        service.startService()
        signal.raise_signal(signal.SIGUSR2)
        yield deferLater(reactor, 0)
        line = "SIGUSR2: a rolling restart needs workers: restart the service instead"
        self.assertEqual(lines, [line])
        self.assertEqual((len(service.ports), service.has_stopped), (1, False))
        yield service.stopService()
        self.assertEqual(signal.getsignal(signal.SIGUSR2), before)

    @inlineCallbacks
    def test_a_worker_leaves_signals_to_its_parent(self) -> object:
        handlers = [signal.getsignal(each) for each in (signal.SIGHUP, signal.SIGUSR2)]
        listening = socket.create_server(("127.0.0.1", 0)).detach()
        service = TopicService(self.settings(), reactor, sockets=[listening])
        service.read_settings = self.settings
        service.startService()
        after = [signal.getsignal(each) for each in (signal.SIGHUP, signal.SIGUSR2)]
        yield service.stopService()
        self.assertEqual(after, handlers)

    def warnings_of(self, service: TopicService) -> list[str]:
        """Return a list to which the warnings of a service are added."""
        lines: list[str] = []

        def observe(event: Any) -> None:
            if event.get("log_source") is service and event["log_level"] is LogLevel.warn:
                lines.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        return lines

    def test_counts_of_token_checks_survive_a_reload(self) -> None:
        service = TopicService(self.settings(), reactor)
        before = service._validators
        for _ in range(2):
            refused = service._validators.validator.validate("nonsense", demo.TOPIC)
            self.failureResultOf(refused, TokenInactive)
            service.read_settings = self.settings  # with another key
            service.reload()
        self.assertIsNot(service._validators, before)
        _, text = service.metrics.page("")
        self.assertIn(b'topicsvc_token_checks_total{outcome="refused"} 2.0\n', text)

    def test_sends_have_a_validator_of_their_own_before_and_after_a_reload(self) -> None:
        password = self.mktemp()
        Path(password).write_text("secret")

        def settings(more: str = "") -> Config:
            return config.load(
                f"""
                unit_url = "https://unit1.example/"
                [validator]
                kind = "personium"
                username = "topicsvc"
                password_file = "{password}"
                {more}
                """,
                [LOOPBACK],
            )

        service = TopicService(settings(), reactor)
        service.read_settings = lambda: settings("cache = 5")
        before = service._validators
        for _ in range(2):
            stack, send = service._validators, service._send_resource
            self.assertIs(service.websocket_server.context.validator, stack.validator)
            self.assertIs(send.validator, stack.send_validator)
            self.assertIs(send.rights_validator, stack.rights_validator)
            self.assertEqual(
                len({id(stack.validator), id(stack.send_validator), id(stack.rights_validator)}), 3
            )
            service.reload()
            self.assertIsNot(service._validators, before)

    def warnings(self, service: TopicService) -> list[str]:
        """Return the warnings about other processes, as at a start."""
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        self.addCleanup(service._shared_file.leave)
        service._warn_of_other_processes()
        return [formatEvent(each) for each in events if each["log_level"] is LogLevel.warn]

    def test_a_memory_broker_behind_a_second_process_with_the_same_file_is_a_warning(self) -> None:
        file = Path(self.mktemp()).absolute()
        file.write_text("")
        first, second = (TopicService(self.settings(), reactor) for _ in range(2))
        first.config_file = second.config_file = file
        self.assertEqual(self.warnings(first), [])
        [line] = self.warnings(second)
        self.assertIn(f"and another process uses {file}: a message does not reach", line)

    def test_a_memory_broker_behind_instances_or_a_shared_port_is_a_warning(self) -> None:
        service = TopicService(self.settings(), reactor)
        self.patch(service_module, "running_instances", lambda: ("topicsvc@.service", 2))
        self.patch(service_module, "shares_port", lambda _: True)
        instances, port = self.warnings(service)
        self.assertIn("and systemd runs 2 instances of topicsvc@.service: ", instances)
        self.assertIn(f"and other processes may listen on {LOOPBACK} too (SO_REUSEPORT)", port)

    def test_other_brokers_may_be_behind_several_processes(self) -> None:
        text = '[broker]\nkind = "activemq"\nendpoint = "tcp:127.0.0.1:1"'
        service = TopicService(self.settings(text), reactor)
        self.patch(service_module, "running_instances", lambda: ("topicsvc@.service", 2))
        self.assertEqual(self.warnings(service), [])

    def test_a_service_that_has_stopped_leaves_no_lock(self) -> Deferred[None]:
        file = Path(self.mktemp()).absolute()
        file.write_text("")
        service = TopicService(self.settings(), reactor)
        service.config_file = file
        service.privilegedStartService()
        service.startService()
        self.assertEqual(count_locks(file), 1)
        stopped = service.stopService()
        return stopped.addCallback(lambda _: self.assertEqual(count_locks(file), 0))

    def test_log_subjects_applies_at_the_start_and_at_a_reload(self) -> None:
        service = TopicService(self.settings("[log]\nsubjects = false"), reactor)
        logs = (service.websocket_server.context.session_log, service.refused_sends)
        self.assertEqual([log.has_subjects for log in logs], [False, False])
        service.read_settings = self.settings
        service.reload()
        self.assertEqual([log.has_subjects for log in logs], [True, True])

    def test_new_limits_apply_at_once_and_refusals_stay_counted(self) -> None:
        service = TopicService(self.settings(), reactor)
        first = ClientQuota.admit(service.limits, "192.0.2.1")
        service.read_settings = lambda: replace(
            self.settings(), limits=LimitSettings(connections=1)
        )
        service.reload()
        self.assertEqual(
            ClientQuota.admit(service.limits, "192.0.2.2").exceeded_limit, "connections"
        )
        service.read_settings = self.settings
        service.reload()
        second = ClientQuota.admit(service.limits, "192.0.2.2")
        self.assertIsNone(second.exceeded_limit)
        _, text = service.metrics.page("")
        self.assertIn(b'topicsvc_limit_hits_total{limit="connections"} 1.0\n', text)
        self.assertIn(b'topicsvc_limit_hits_total{limit="per_address"} 0.0\n', text)
        first.release()
        second.release()

    def test_0_connections_means_the_file_limit_less_a_reserve(self) -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        service = TopicService(self.settings(), reactor)
        self.assertEqual(service.limits.max_connections, max(soft - 256, soft // 2))


class DemoTests(SynchronousTestCase):
    def text(self, *listen: str, address: object = None) -> str:
        settings = demo.settings(listen, None)
        port = type("Port", (), {"getHost": lambda _: address or IPv4Address("TCP", "0.0.0.0", 81)})
        self.validator = LocalValidator(settings.validator.key, reactor.seconds)
        return demo.text(settings, [port()], reactor.seconds())

    def test_it_listens_on_loopback_by_default(self) -> None:
        self.assertEqual(demo.settings([], None).listen, ("tcp:8080:interface=127.0.0.1",))

    def test_its_text_has_the_commands_to_try_it(self) -> None:
        text = self.text()
        self.assertIn("demo", text.strip().splitlines()[0])
        self.assertIn("/cell1/box1/stream-collection1/topic/name", text)
        url = "127.0.0.1:81/cell1/__topic/box1/stream-collection1.topic.name"
        self.assertIn(f"    topicsvc subscribe ws://{url}\n", text)
        self.assertIn("topicsvc send http://127.0.0.1:81/cell1/box1/", text)
        self.assertIn("curl ", text)
        page, *_ = re.findall(r"https?://\S+", text)
        self.assertEqual(page, "http://127.0.0.1:81/")

    def test_its_commands_fit_in_100_columns(self) -> None:
        text = self.text(address=IPv4Address("TCP", "127.0.0.1", 8080))
        [wide] = [line for line in text.splitlines() if len(line) > 100]
        self.assertIn(" export TOPICSVC_TOKEN=", wide)

    def test_its_token_is_valid_for_an_hour(self) -> None:
        token = self.text().split("export TOPICSVC_TOKEN=")[1].split()[0]
        grant = self.successResultOf(self.validator.validate(token, demo.TOPIC))
        self.assertTrue(grant.may_receive and grant.may_send)
        self.assertTrue(-5 < grant.expires_at - (reactor.seconds() + 3600) < 5)

    def test_it_serves_and_announces_the_interface_it_listens_on(self) -> None:
        text = self.text("tcp:81:interface=127.0.0.2", address=IPv4Address("TCP", "127.0.0.2", 81))
        self.assertIn("ws://127.0.0.2:81/cell1/", text)
        unit = demo.settings(["tcp:81:interface=127.0.0.2"], None).unit
        path = demo.TOPIC.websocket_path.encode()
        self.assertEqual(unit.websocket_topic([b"127.0.0.2:81"], path), demo.TOPIC)

    def test_tls_and_ipv6(self) -> None:
        text = self.text("ssl:443:privateKey=k", address=IPv6Address("TCP", "::1", 443))
        self.assertIn("wss://localhost:443/cell1/", text)
        self.assertIn("https://localhost:443/cell1/", text)
