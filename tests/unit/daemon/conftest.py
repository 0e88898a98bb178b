"""What tests of the daemon's decisions share."""

from __future__ import annotations

import pytest

from tests.daemon_rig import Rig


@pytest.fixture
def rig() -> Rig:
    """A daemon on an empty root, in memory."""
    return Rig()
