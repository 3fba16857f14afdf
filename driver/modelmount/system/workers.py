"""Workers: processes for one piece of work each, forked by a helper of this process.

A process with threads can't fork safely, and a new interpreter for each piece of work is dear. So there is a helper,
started once: this interpreter anew, with one thread, an empty environment and no descriptor but a socket to us. It
forks a worker for each order. A worker has the descriptors that were handed in with its order, and one socket for
talking with whoever ordered.

Nobody outlives anybody: the helper ends with its socket, which ends with us, and a worker with its helper.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import importlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from modelmount.system import privilege, process

MESSAGE_BYTES: Final = 128 << 10
"""Most that a message may have, either way."""
MOST_DESCRIPTORS: Final = 8

_STARTED: Final = struct.Struct("=q")
_ENDED: Final = struct.Struct("=iQ")
_PROGRAM: Final = (
    "import sys; sys.path[:0] = sys.argv[1:3]; "
    "from modelmount.system import workers; workers.serve(sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))"
)
_OURS: Final = Path(__file__).resolve().parents[2]
_KEPT_VARIABLES: Final = ("PATH", "LD_LIBRARY_PATH")
_END_SECONDS: Final = 5.0
START_SECONDS: Final = 60.0
"""A helper that doesn't answer for so long is stuck, and ended."""

Work = Callable[[bytes, socket.socket, Sequence[int], int], None]
"""What a worker does: the order, the socket to whoever ordered, the descriptors handed in, and its parent's process id.
It gives up its rights by itself, before it looks at anything that it can't trust.
"""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a worker ended: its exit status or, below zero, the signal that ended it; None where nobody can tell, because
    the helper ended too. And the processor time it took.
    """

    status: int | None
    cpu_seconds: float = 0.0

    @property
    def cause(self) -> str:
        """In words."""
        if self.status is None:
            return "its parent ended"
        if self.status >= 0:
            return f"it ended with status {self.status}"
        return f"it was ended by {_signal_name(-self.status)}"


class Worker:
    """One worker, by whoever ordered it. One thread at a time. `end` must be called."""

    def __init__(self, pid: int, control: socket.socket, status: socket.socket) -> None:
        """Made by `Helper.start`."""
        self.pid = pid
        """In the helper's process namespace."""
        self.control = control
        """A message each way at a time (SOCK_SEQPACKET). It trusts the worker as little as the worker's input."""
        self._status = status
        self._ended: Ended | None = None

    def wait(self, seconds: float) -> Ended | None:
        """How it ended, if it does in so many seconds."""
        if self._ended is None:
            self._status.settimeout(seconds)
            try:
                self._ended = self._told()
            except TimeoutError:
                return None
        return self._ended

    def end(self) -> Ended:
        """Kill it unless it has ended, wait until it is gone, and close the sockets. Again is harmless."""
        if self._ended is None:
            with contextlib.suppress(OSError):  # the helper ended, or has told already
                self._status.send(b"end")
            self._status.settimeout(None)
            self._ended = self._told()
        self.control.close()
        self._status.close()
        return self._ended

    def _told(self) -> Ended:
        try:
            data = self._status.recv(_ENDED.size)
        except ConnectionError:
            data = b""
        if len(data) != _ENDED.size:
            return Ended(None)
        status, microseconds = _ENDED.unpack(data)
        return Ended(os.waitstatus_to_exitcode(status), microseconds / 1e6)


class Helper:
    """The helper of this process for one kind of work. Thread-safe. It is started by the first order, and anew when it
    was killed or had nothing to do for too long.
    """

    def __init__(self, module: str, directory: Path = _OURS, *, idle_seconds: float = 0) -> None:
        """`module` has `prepare`, which the helper calls once, and `work`, as `Work` says. It is found in
        `directory` or where this package is. A helper that has no worker for `idle_seconds` ends by itself; 0: never.
        Nothing starts yet.
        """
        self._module, self._directory, self._idle_seconds = module, directory, idle_seconds
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, order: bytes, descriptors: Sequence[int], *, seconds: float = START_SECONDS) -> Worker:
        """A worker for this order, with copies of the descriptors. Raises OSError where none can be had; a helper that
        doesn't answer for so many seconds is stuck, and another is started, once.
        """
        for last in (False, True):
            way = self._way()
            try:
                return _started(way, order, descriptors, seconds)
            except OSError as e:
                # Closed by another thread that met the same dead helper.
                if last or not (isinstance(e, ConnectionError) or e.errno == errno.EBADF):
                    raise
                self._forget(way)
        raise AssertionError

    def prepare(self) -> None:
        """Begin to start the helper, if there is none, and don't wait for it. Raises OSError."""
        self._way()

    def close(self) -> None:
        """End the helper, and with it its workers. The next order starts another."""
        with self._lock:
            self._end()

    @property
    def pid(self) -> int | None:
        """Of the helper, where there is one."""
        with self._lock:
            return self._process.pid if self._process is not None else None

    def _way(self) -> socket.socket:
        with self._lock:
            if self._socket is None:
                self._socket, self._process = _launch(self._module, self._directory, self._idle_seconds)
                atexit.register(self.close)
                watch = (self._socket, self._process)
                threading.Thread(target=self._take_leave, args=watch, name="helper-end", daemon=True).start()
            return self._socket

    def _take_leave(self, way: socket.socket, started: subprocess.Popen[bytes]) -> None:
        """Wait for its end, whatever brings it: nothing of it stays until the next order, not even a zombie."""
        started.wait()
        self._forget(way)

    def _forget(self, way: socket.socket) -> None:
        with self._lock:
            if self._socket is way:
                self._end()

    def _end(self) -> None:
        if self._socket is None or self._process is None:
            return
        self._socket.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._socket = self._process = None
        atexit.unregister(self.close)


def _launch(module: str, directory: Path, idle_seconds: float) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    ours, theirs = _pair()
    with theirs:
        arguments = [str(directory), str(_OURS), module, str(theirs.fileno()), str(idle_seconds)]
        environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        try:
            started = subprocess.Popen(
                [sys.executable, "-I", "-c", _PROGRAM, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                cwd="/",
                env={**environment, "LC_ALL": "C.UTF-8"},
                process_group=0,  # signals of a terminal are for who started us
            )
        except BaseException:
            ours.close()
            raise
    return ours, started


def _started(way: socket.socket, order: bytes, descriptors: Sequence[int], seconds: float) -> Worker:
    """Raises ConnectionError where the helper has ended."""
    control, their_control = _pair()
    status, their_status = _pair()
    try:
        with their_control, their_status:
            socket.send_fds(way, [order], [their_status.fileno(), their_control.fileno(), *descriptors])
        status.settimeout(seconds)
        try:
            answer = status.recv(_STARTED.size)
        except TimeoutError as e:
            raise ConnectionResetError("the helper that starts processes doesn't answer") from e
        status.settimeout(None)
        if len(answer) != _STARTED.size:
            raise ConnectionResetError("the helper that starts processes has ended")
        (pid,) = _STARTED.unpack(answer)
        if pid < 0:
            raise OSError(-pid, f"{os.strerror(-pid)} [fork]")
    except BaseException:
        control.close()
        status.close()
        raise
    return Worker(pid, control, status)


def _pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# -- the helper's own life


def serve(module: str, descriptor: int, idle_seconds: float) -> NoReturn:
    """Be a helper, whose orders come over the socket with this descriptor, until that ends, or until it had no worker
    for so long (0: for ever).
    """
    process.go_first()
    process.harden()
    privilege.keep(privilege.WORKERS)
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # whoever orders says when it is over
        signal.signal(name, signal.SIG_IGN)
    imported = importlib.import_module(module)
    imported.prepare()
    work: Work = imported.work
    gc.collect()
    gc.freeze()  # so that workers share its memory
    _Nursery(socket.socket(fileno=descriptor), work, idle_seconds).run()


class _Child:
    """A worker that lives, or whose end was told and not read yet."""

    def __init__(self, pid: int, status: socket.socket) -> None:
        self.pid, self.status, self.lives = pid, status, True


class _Nursery:
    def __init__(self, orders: socket.socket, work: Work, idle_seconds: float) -> None:
        self._orders, self._work = orders, work
        self._patience = idle_seconds * 1000 or None
        self._poll = select.poll()
        self._poll.register(orders, select.POLLIN)
        self._living: dict[int, _Child] = {}
        self._watched: dict[int, _Child] = {}
        self._woken, waker = socket.socketpair()
        waker.setblocking(False)
        self._waker = waker
        self._poll.register(self._woken, select.POLLIN)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)

    def run(self) -> NoReturn:
        while True:
            events = self._poll.poll(self._patience)
            if not events and not self._watched:
                os._exit(0)  # an order that comes now finds the socket closed, and starts another
            for descriptor, _ in events:
                if descriptor == self._woken.fileno():
                    self._woken.recv(4096)
                elif descriptor == self._orders.fileno():
                    self._take_order()
                elif descriptor in self._watched:
                    self._listen(self._watched[descriptor])
            self._reap()

    def _take_order(self) -> None:
        try:
            order, descriptors, _, _ = socket.recv_fds(self._orders, MESSAGE_BYTES, MOST_DESCRIPTORS)
        except ConnectionError:
            order, descriptors = b"", []
        if not order:
            for pid in self._living:
                os.kill(pid, signal.SIGKILL)
            os._exit(0)
        status = socket.socket(fileno=descriptors[0])
        control = socket.socket(fileno=descriptors[1])
        handed = descriptors[2:]
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as e:
            _tell(status, _STARTED.pack(-(e.errno or 1)))
            status.close()
        else:
            if pid == 0:
                _live(self._work, order, control, handed, parent)
            self._living[pid] = self._watched[status.fileno()] = _Child(pid, status)
            self._poll.register(status, select.POLLIN)
            _tell(status, _STARTED.pack(pid))
        control.close()
        for descriptor in handed:
            os.close(descriptor)

    def _listen(self, child: _Child) -> None:
        """Whoever ordered wants it gone, or is gone."""
        if child.lives:
            os.kill(child.pid, signal.SIGKILL)
        try:
            said = child.status.recv(16)
        except ConnectionError:
            said = b""
        if not said:
            self._poll.unregister(child.status)
            del self._watched[child.status.fileno()]
            child.status.close()

    def _reap(self) -> None:
        while self._living:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if not pid:
                return
            child = self._living.pop(pid)
            child.lives = False
            # Its socket stays until the other side closes: with a word unread in it, what is told here would be lost.
            _tell(child.status, _ENDED.pack(status, int((usage.ru_utime + usage.ru_stime) * 1e6)))


def _tell(whom: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody wants to know any more
        whom.send(data)


def _live(work: Work, order: bytes, control: socket.socket, descriptors: Sequence[int], parent: int) -> NoReturn:
    """A worker's whole life."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(name, signal.SIG_DFL)
        os.dup2(0, 2)  # what it has to say doesn't go to our log
        _close_all_but({0, 1, 2, control.fileno(), *descriptors})
        work(order, control, descriptors, parent)
        status = 0
    finally:
        os._exit(status)  # also with an exception under way: its status is what whoever ordered hears of it


def _close_all_but(kept: Container[int]) -> None:
    for descriptor in [int(name) for name in os.listdir("/proc/self/fd")]:
        if descriptor not in kept:
            with contextlib.suppress(OSError):  # the one that listed them
                os.close(descriptor)
