"""Python commands in forks of a process that has imported everything: what a user runs, without its seconds of imports.

A server, started once for a test run, forks its workers and a child for each command. The child takes the caller's
arguments, environment, folder and files, and runs the module as `python -m` would. A command that starts workers of its
own has them forked as well, by a small server in its own session, so that signals to its group reach them. Started with
a script, this file is the Python that runs it (`EXECUTABLE`): it waits for the fork, and neither outlives the other.

Only what a fresh interpreter reads before it imports anything (`-W`, `PYTHONWARNINGS`) isn't honoured.
"""

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import logging
import multiprocessing.util
import os
import pkgutil
import re
import runpy
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace

ADDRESS = "PATCHMINT_TEST_WARM"
"""Environment variable with the server's address."""
LEASE = "PATCHMINT_TEST_LEASE"
"""Environment variable of a command: seconds between its lease's beats, and of its patience with another's."""

EXECUTABLE = shlex.join([sys.executable, __file__, "script"])
"""A command that stands for Python where the command line is somebody else's."""

_TIED = "PATCHMINT_TEST_TIED"
_MESSAGE = 1 << 17
_WORKERLESS = {"doctor", "inspect", "label", "status"}
"""Commands that start no workers: a second server, forked for nothing, would be a third of what they cost."""
_NO_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# A fork has none of the threads that libraries start on import.


def start_server():
    """Start the server, if nobody has, and return at once; it ends with this process."""
    if ADDRESS in os.environ:
        return
    address = f"@patchmint-warm-{os.getpid()}"
    listener = _listen(address)
    alive, ours = os.pipe()
    fds = (listener.fileno(), alive)
    server = subprocess.Popen(
        [sys.executable, __file__, *map(str, fds)],
        pass_fds=fds,
        stdin=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | _NO_THREADS,
    )
    server.returncode = 0  # nobody waits for it
    listener.close()
    os.close(alive)
    os.set_inheritable(ours, False)
    os.environ[ADDRESS] = address  # `ours` stays open as long as this process lives


class Python:
    """A command `[sys.executable, "-m", module, ...]`, `-c code` or a script, as `subprocess.Popen` has it."""

    def __init__(
        self, command, *, env=None, cwd=None, stdin=None, stdout=None, stderr=None, pass_fds=(), start_new_session=False
    ):
        assert str(command[0]) == sys.executable, command
        self.args = [str(word) for word in command]
        self.returncode = None
        given, handed, closing = [None, None, None], [], []
        for number, wanted in enumerate((stdin, stdout, stderr)):
            if wanted == subprocess.PIPE:
                theirs, ours = os.pipe() if number == 0 else reversed(os.pipe())
                given[number] = os.fdopen(ours, "wb" if number == 0 else "rb", buffering=0)
                closing.append(theirs)
            elif wanted == subprocess.DEVNULL:
                closing.append(theirs := os.open(os.devnull, os.O_RDWR))
            else:
                theirs = number if wanted is None else wanted if isinstance(wanted, int) else wanted.fileno()
            handed.append(theirs)
        self.stdin, self.stdout, self.stderr = given
        request = {
            "arguments": self.args[1:],
            "env": {name: str(value) for name, value in (os.environ if env is None else env).items()},
            "cwd": str(cwd or Path.cwd()),
            "targets": [0, 1, 2, *pass_fds],
            "session": start_new_session,
        }
        start_server()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect(_abstract(os.environ[ADDRESS]))
        socket.send_fds(self._socket, [json.dumps(request).encode()], [*handed, *pass_fds])
        self.pid = int(self._socket.recv(64))
        for fd in closing:
            os.close(fd)

    def poll(self):
        """The exit code, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.001)
        return self.returncode

    def wait(self, timeout=None):
        """Wait for its end; minus the signal's number if one has ended it."""
        if self.returncode is None:
            self._socket.settimeout(timeout)
            try:
                self.returncode = int(self._socket.recv(64))
            except TimeoutError as error:
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from error
            self._socket.close()
        return self.returncode

    def communicate(self, timeout=None):
        """Read all that it prints, and wait for its end."""
        deadline = time.monotonic() + (timeout or 3600)
        said = {stream: b"" for stream in (self.stdout, self.stderr) if stream is not None and not stream.closed}
        with selectors.DefaultSelector() as waiting:
            for stream in said:
                waiting.register(stream, selectors.EVENT_READ)
            while waiting.get_map():
                ready = waiting.select(max(0, deadline - time.monotonic()))
                if not ready:
                    raise subprocess.TimeoutExpired(self.args, timeout or 0, said.get(self.stdout))
                for key, _ in ready:
                    data = os.read(key.fd, 1 << 16)
                    said[key.fileobj] += data
                    if not data:
                        waiting.unregister(key.fileobj)
                        key.fileobj.close()
        self.wait(max(0.001, deadline - time.monotonic()))
        both = (self.stdout, self.stderr)
        return tuple(None if stream is None else said.get(stream, b"").decode() for stream in both)

    def send_signal(self, number):
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def run(command, *, timeout=300, **options):
    """As `subprocess.run` with captured text."""
    process = Python(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    try:
        stdout, stderr = process.communicate(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


SUBPROCESS = SimpleNamespace(Popen=Python, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired)
"""What a pool of local workers needs of `subprocess`, so that they are forked."""


def _abstract(address):
    """A socket's address that needs no file."""
    return address.replace("@", "\0")


def _listen(address):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(_abstract(address))
    listener.listen(64)
    return listener


def _serve(listener, alive):
    """Fork a child for each request until nobody wants any more; returns in each child, with its request."""
    running = {}
    with selectors.DefaultSelector() as waiting:
        waiting.register(listener, selectors.EVENT_READ)
        waiting.register(alive, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                if key.fileobj == alive:
                    os._exit(0)
                if key.fileobj is listener:
                    caller, _ = listener.accept()
                    message, fds, _, _ = socket.recv_fds(caller, _MESSAGE, 16)
                    if not (pid := os.fork()):
                        caller.close()
                        for pidfd, (_, other) in running.items():
                            os.close(pidfd)
                            other.close()
                        os.close(alive)
                        listener.close()
                        return json.loads(message), fds
                    caller.send(str(pid).encode())
                    for fd in fds:
                        os.close(fd)
                    pidfd = os.pidfd_open(pid)
                    waiting.register(pidfd, selectors.EVENT_READ)
                    running[pidfd] = pid, caller
                    continue
                pid, caller = running.pop(key.fd)
                waiting.unregister(key.fd)
                os.close(key.fd)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(OSError):  # who asked has gone
                    caller.send(str(code).encode())
                caller.close()


def _become(request, fds):
    """Make this fork what the caller would have started."""
    if request["session"]:
        os.setsid()
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 200) for fd in fds]
    for fd in fds:
        os.close(fd)
    for fd, target in zip(high, request["targets"], strict=True):
        os.dup2(fd, target)
        os.close(fd)
    sys.stdin = sys.__stdin__ = os.fdopen(0, closefd=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", errors="backslashreplace", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.path[:0] = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    importlib.invalidate_caches()
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _fork_workers():
    """Have a build's workers forked as well, by a server in this session that ends with this process."""
    from patchmint.pipeline.pools import local

    address = f"@patchmint-warm-{os.getpid()}"
    listener = _listen(address)
    alive, _ours = os.pipe()
    if not os.fork():
        os.close(_ours)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in (0, 1, 2):  # or whoever reads what the command prints would wait for this process
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        request, fds = _serve(listener, alive)
        _become(request, fds)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return request
    listener.close()
    os.close(alive)
    os.environ[ADDRESS] = address
    local.subprocess = SUBPROCESS
    return None


def _hasten(interval, patience):
    """Beat and wait for leases in less time than users' drivers do."""
    from patchmint.shards.lease import Lease

    Lease.acquire = staticmethod(partial(Lease.acquire, interval=float(interval), patience=float(patience)))


def _import_everything():
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers
        import typer.rich_utils  # noqa: F401
        from groundingdino.models import GroundingDINO  # noqa: F401

        import patchmint

        for module in pkgutil.walk_packages(patchmint.__path__, "patchmint."):
            # Ray isn't for forks: it reads its environment when it is imported
            if not module.name.endswith((".__main__", ".pools.ray", ".cluster_probe", ".doctor")):
                importlib.import_module(module.name)
        for name in ("BertModel", "CLIPVisionModel", "SiglipVisionModel"):
            getattr(transformers, name)
    _prepare_commands()
    assert "ray" not in sys.modules
    # at a fork's end what is registered by now would only copy the pages of what it takes apart
    for cleaning in weakref.finalize._registry:
        cleaning.atexit = False
    atexit._clear()
    for end in (logging.shutdown, weakref.finalize._exitfunc, multiprocessing.util._exit_function):
        atexit.register(end)


def _prepare_commands():
    """Have typer read the options of all commands, half of what a short command takes."""
    from patchmint.cli import COMMANDS

    waiting = [command.load(name) for name, command in COMMANDS.items()]
    for command in waiting:
        waiting += [inner.load(name) for name, inner in getattr(command, "table", {}).items()]
        for option in command.params:
            option.get_runtime_param()


def _use_large_pages():
    """Move what is imported into pages of 2 MiB, where Linux can: a fork and its end then take a third of the time."""
    libc, size = ctypes.CDLL(None), 1 << 21
    for mapping in Path("/proc/self/maps").read_text().splitlines():
        if found := re.fullmatch(r"(\w+)-(\w+) rw-p 0+ 00:00 0 *(?:\[heap\])?", mapping):
            first, end = (int(address, 16) for address in found.groups())
            for page in range(-(-first // size) * size, end - size + 1, size):
                libc.madvise(ctypes.c_void_p(page), ctypes.c_size_t(size), 25)  # MADV_COLLAPSE


def _run(arguments):
    kind = arguments[0]
    if kind == "-c":
        sys.argv = arguments[:1] + arguments[2:]
        sys.path.insert(0, "")
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        sys.argv = arguments[1:]
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(kind).parent))
        runpy.run_path(kind, run_name="__main__")


def _exit_code(arguments):
    try:
        _run(arguments)
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _end(code):
    """End as the interpreter does, but for taking apart what was imported, which takes seconds."""
    threading._shutdown()
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _tie(pipe):
    """End this fork when the pipe's other end is closed: a process that gets SIGIO, and has no use for it, ends."""
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETFL, os.O_ASYNC)


if __name__ == "__main__" and sys.argv[1:2] == ["script"]:
    theirs, _ours = os.pipe()
    tied = {"env": os.environ | {_TIED: str(theirs)}, "pass_fds": [theirs]}
    # in a group of its own: Ray kills those of dead workers
    sys.exit(Python([sys.executable, *sys.argv[2:]], start_new_session=True, **tied).wait())

if __name__ == "__main__" and "-c" in sys.argv:  # as pytest-xdist starts its workers: WARM -u -c CODE
    sys.exit(Python([sys.executable, *sys.argv[sys.argv.index("-c") :]]).wait())

if __name__ == "__main__":
    gc.disable()
    import pyarrow as pa

    _import_everything()
    sys.path.remove(str(Path(__file__).resolve().parent))
    pa.array([1])  # imports pandas where it is installed
    gc.freeze()
    gc.enable()
    _use_large_pages()
    task, files = _serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
    _become(task, files)
    if _TIED in os.environ:
        _tie(int(os.environ.pop(_TIED)))
    if LEASE in os.environ:
        _hasten(*os.environ[LEASE].split())
    if task["arguments"][0] == "-m" and not _WORKERLESS & {*task["arguments"][2:3]}:
        task = _fork_workers() or task
    _end(_exit_code(task["arguments"]))
