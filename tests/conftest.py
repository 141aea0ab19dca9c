"""For all tests: SIGTERM does what Ctrl-C does, so that no gateway of theirs is left behind."""

import signal


def pytest_configure() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
