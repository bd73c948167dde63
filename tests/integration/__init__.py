"""Integration tests: real brokers, proxies, browsers and scanners on loopback ports."""

import signal

# A shell starts background processes with SIGINT ignored, and their children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
