"""What every test shares: reproducible hypothesis runs, one thread, and `--jaxtyping` to check shapes at run time."""

from __future__ import annotations

import signal

import pytest
import torch
from hypothesis import HealthCheck, settings
from shape_checking import import_with_shape_checks

# No example is too slow, and none takes too long to make: a busy machine must not fail a test.
settings.register_profile(
    "xmodal", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("xmodal")
torch.set_num_threads(1)
# Whoever starts the tests in the background lets them ignore Ctrl-C, and so all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption(
        "--jaxtyping",
        action="store_true",
        help="check every argument and result of xmodal.heads and xmodal.objectives against its annotated shape",
    )
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than ten seconds; run with --slow")
    config.addinivalue_line("markers", "bad_input: expects our own error for a wrong shape or type")
    config.addinivalue_line("markers", "compiles: calls torch.compile, which runtime checks of shapes would break")
    if config.getoption("--jaxtyping"):
        import_with_shape_checks("xmodal.heads", "xmodal.objectives")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))
        unchecked = item.get_closest_marker("bad_input") or item.get_closest_marker("compiles")
        if unchecked and config.getoption("--jaxtyping"):
            item.add_marker(
                pytest.mark.skip(reason="shapes are checked before our own errors, and not in compiled code")
            )
