"""One Slurm cluster for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from slurm import Cluster, why_not


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster of two nodes; where there can be none, the tests are skipped and say why."""
    if reason := why_not():
        pytest.skip(reason)
    cluster = Cluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
