"""``topicsvc serve``: what ``twistd -n --pidfile= topicsvc`` starts, with a log for people."""

from __future__ import annotations

import signal
import sys
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from twisted.application.service import ServiceMaker
from twisted.scripts import twistd

from topicsvc import service
from topicsvc.cli.terminal import CommandFailed
from topicsvc.logs import text_lines
from topicsvc.process.setup import CannotStart

__all__ = ["run"]

_TWISTD = ["--nodaemon", "--pidfile=", f"--logger={text_lines.__module__}.{text_lines.__name__}"]

_MAKER = ServiceMaker("topicsvc", service.__name__, "", "topicsvc")


def run(options: Namespace) -> None:
    """Run the service until a signal stops it. The process then ends with that signal.

    Raises:
        CommandFailed: the service cannot start.
    """
    if sys.stdout is None:
        raise CommandFailed("standard output is closed, and the log is written there")
    streams = sys.stdout, sys.stderr
    # The reactor replaces only Python's own handler.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        configuration = _TwistdOptions()
        configuration.parseOptions([*_TWISTD, _MAKER.tapname, *_arguments(options)])
        twistd.runApp(configuration)
    except CannotStart as error:
        raise CommandFailed(*error.problems) from error
    finally:
        sys.stdout, sys.stderr = streams  # the log has replaced them


def _arguments(options: Namespace) -> Iterator[str]:
    """The options as `topicsvc.options.Options` takes them."""
    if options.config is not None:
        yield f"--config={options.config}"
    for endpoint in options.listen:
        yield f"--listen={endpoint}"
    if options.admin is not None:
        yield f"--admin={options.admin}"
    if options.workers is not None:
        yield f"--workers={options.workers}"
    if options.demo:
        yield "--demo"


class _TwistdOptions(twistd.ServerOptions):  # type: ignore[misc, name-defined]
    """The options of twistd, with one command. It needs no search for plugins."""

    @property
    def subCommands(self) -> Iterator[tuple[str, None, Any, str]]:
        self.loadedPlugins = {_MAKER.tapname: _MAKER}
        yield _MAKER.tapname, None, _MAKER.options, _MAKER.description
