"""Real servers and clients on loopback ports."""

import signal

# What a shell runs in the background ignores SIGINT, and so would all that is started here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
