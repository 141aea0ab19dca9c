"""No engine process outlives the gateway, not even a `kill -9` of it.

vLLM loads this in each of its processes (entry point group `vllm.general_plugins`). Stock vLLM has a
death pipe between Worker and EngineCore only; EngineCore itself stays for ever when its parent is
killed. `PR_SET_PDEATHSIG` would not do: it is bound to the thread that spawned the child, and engines
are built in a worker thread.
"""

import multiprocessing
import os
import threading
from multiprocessing.process import BaseProcess

POLL_S = 2.0


def watch_parent() -> None:
    """In a child process: leave the terminal's process group, and exit when the parent is gone.

    The own process group keeps Ctrl-C from the engine, which would abort every running request; the
    gateway drains and then shuts the engine down itself.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    os.setpgid(0, 0)
    threading.Thread(
        target=_exit_after, args=(parent,), daemon=True, name="exit-with-parent"
    ).start()


def _exit_after(parent: BaseProcess) -> None:
    """The sentinel tells at once; the pid also when some other process holds the sentinel open."""
    while parent.is_alive() and os.getppid() == parent.pid:
        parent.join(timeout=POLL_S)
    os._exit(1)
