"""A Jupyter kernel that is forked from a server in which the heavy libraries are already imported.

A notebook that imports torch, transformers, trl and peft waits for seconds before its first line of work. The
kernelspec ``polydetox`` (``spec``) starts a small client (``client``) in place of ``ipykernel``; the client asks a
server (``server``) to fork, and the fork becomes an ordinary ipykernel in which those imports are already done.
Papermill, nbclient, Jupyter Lab and Snakemake use it by name: ``papermill -k polydetox in.ipynb out.ipynb``.

What a notebook may rely on
---------------------------
*Clean state.* Each kernel is a fork of the server as it was after its imports, so nothing that a notebook does reaches
another one. Environment, working directory, standard streams and signal handlers are the client's; the random
generators of Python, NumPy and PyTorch are seeded afresh. Modules are already in ``sys.modules``, and the seed of
``hash(str)`` is one per server.

*The same process behaviour.* The client stays as the kernel's process: it forwards signals, ends with the kernel's exit
status or signal, and ends the kernel with everything in its process group when it is killed or its own parent is gone.
When the server is killed, its kernels end too and are reported dead.

*The same variables.* What a process inherits or reads at import (``PYTHON*``, ``HF_*``, ``TORCH*``, ``MPL*``, locale,
resource limits, CPU affinity, control group, namespaces; ``protocol.inherited``) is part of the server's name: a client
that differs in one of them gets a server of its own. Variables that hold a number of threads are applied after the
fork, to OpenBLAS, OpenMP and PyTorch. A ``matplotlibrc`` in the working directory is not read (``MATPLOTLIBRC`` is).

*Fresh code.* A server that finds a changed file of this package, an installed, removed or changed distribution, or a
changed file of another preloaded module, takes no more notebooks and ends with its last kernel; the client starts
another server.

*No GPU before the fork.* A server in which CUDA was initialised, or that has a second thread, refuses to fork.

Where it cannot run (not Linux, no private folder for the socket, the server refuses or does not start in time) the
client becomes the plain kernel, ``python -m ipykernel_launcher``, and says so in one line on stderr.

Environment variables
---------------------
``POLYDETOX_KERNEL_PLAIN``    not empty: use the plain kernel
``POLYDETOX_KERNEL_PRELOAD``  what the server imports, comma separated: ``module``, ``module:attribute``, ``package.*``,
                              ``module:function()``, which is called
``POLYDETOX_KERNEL_IDLE``     seconds without a kernel or a request after which the server ends (120)
``POLYDETOX_KERNEL_WAIT``     seconds that a client waits for a server before it takes the plain kernel (40; papermill
                              by itself gives a kernel 60)
"""

from __future__ import annotations

import sys


def stop(timeout: float = 10.0, *, now: bool = False) -> bool:
    """Stop this installation's servers: the end of a batch.

    A server that still has kernels takes no new ones and ends after the last; with ``now`` it ends them at once.
    Returns whether all servers ended within ``timeout`` seconds.
    """
    if not sys.platform.startswith("linux"):
        return True
    from polydetox.kernel import client

    return client.stop(timeout, now=now)
