"""Signals reach the reactor, and the previous handlers are restored."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.process.signals import Signals


class FakeReactor:
    """Records the calls that it is given."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def callFromThread(self, call: Callable[[], None]) -> None:
        self.calls.append(call)


class SignalsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.signals = Signals(self.reactor)
        self.addCleanup(self.signals.restore)

    def action(self) -> None: ...

    def test_the_reactor_calls_the_action(self) -> None:
        self.signals.handle(signal.SIGHUP, self.action)
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        self.assertEqual(self.reactor.calls, [self.action, self.action])

    def test_after_handle_once_a_second_signal_kills(self) -> None:
        self.signals.handle_once(signal.SIGUSR2, self.action)
        os.kill(os.getpid(), signal.SIGUSR2)
        self.assertEqual(self.reactor.calls, [self.action])
        self.assertEqual(signal.getsignal(signal.SIGUSR2), signal.SIG_DFL)

    def test_after_handle_twice_the_second_signal_calls_at_once_and_a_third_kills(self) -> None:
        seen: list[str] = []
        numbers = (signal.SIGUSR1, signal.SIGUSR2)
        self.signals.handle_twice(numbers, self.action, lambda: seen.append("second"))
        os.kill(os.getpid(), signal.SIGUSR1)
        self.assertEqual((self.reactor.calls, seen), ([self.action], []))
        os.kill(os.getpid(), signal.SIGUSR2)
        self.assertEqual((self.reactor.calls, seen), ([self.action], ["second"]))
        for number in numbers:
            self.assertEqual(signal.getsignal(number), signal.SIG_DFL)

    def test_only_the_first_counted_signal_is_passed_on_and_a_third_kills(self) -> None:
        seen: list[object] = []
        before = signal.signal(signal.SIGUSR2, lambda *arguments: seen.append(arguments[0]))
        self.addCleanup(signal.signal, signal.SIGUSR2, before)
        self.signals.count(signal.SIGUSR2)
        for count in (1, 2):
            os.kill(os.getpid(), signal.SIGUSR2)
            self.assertEqual((self.signals.counted, seen), (count, [signal.SIGUSR2]))
        self.assertEqual(signal.getsignal(signal.SIGUSR2), signal.SIG_DFL)
        self.signals.restore()
        os.kill(os.getpid(), signal.SIGUSR2)
        self.assertEqual((self.signals.counted, len(seen)), (2, 2))

    def test_a_third_signal_of_any_counted_number_kills(self) -> None:
        numbers = (signal.SIGUSR1, signal.SIGUSR2)
        for number in numbers:
            before = signal.signal(number, lambda *_: None)
            self.addCleanup(signal.signal, number, before)
            self.signals.count(number)
        self.addCleanup(self.signals.restore)
        for number in numbers:
            os.kill(os.getpid(), number)
        self.assertEqual(self.signals.counted, 2)
        for number in numbers:
            self.assertEqual(signal.getsignal(number), signal.SIG_DFL)

    def test_a_signal_without_a_handler_is_not_counted(self) -> None:
        before = signal.getsignal(signal.SIGUSR2)
        self.assertEqual(before, signal.SIG_DFL)
        self.signals.count(signal.SIGUSR2)
        self.assertEqual(signal.getsignal(signal.SIGUSR2), before)

    def test_restore_puts_the_first_handler_back(self) -> None:
        before = signal.getsignal(signal.SIGHUP)
        self.signals.handle(signal.SIGHUP, self.action)
        self.signals.handle(signal.SIGHUP, self.action)
        self.assertNotEqual(signal.getsignal(signal.SIGHUP), before)
        self.signals.restore()
        self.assertEqual(signal.getsignal(signal.SIGHUP), before)
