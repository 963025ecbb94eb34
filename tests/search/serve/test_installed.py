"""Says which packages the tests of the server lack."""

from __future__ import annotations

import pytest

from tests.search.serve.conftest import MISSING


def test_what_a_server_is_made_of_is_installed():
    if MISSING:
        pytest.skip(f"the tests of the server need {', '.join(MISSING)}")
