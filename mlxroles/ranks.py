"""Several processes that hold one model together: their heads gathered, their steps kept equal.

mlx_lm divides a model's heads and widths over the processes ("ranks") of a group; the residual
stream is whole on every one of them. All ranks must ask the group for the same things in the same
order, also where an array is only evaluated: what one of them computes alone, the others wait for.
So every rank builds the same graphs, and edits are made on gathered heads everywhere, of which each
rank goes on with its own.
"""

import atexit
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mlxroles.backend import mx
from mlxroles.errors import MlxrolesError, RanksError
from mlxroles.text import safe_text

MARK = 0x6D6C7872
"""Begins every exchange, so that ranks that have lost step see it."""
PEERS = ("[ring]", "[jaccl]", "[mpi]", "[nccl]")
"""In messages of MLX about the other processes of a group."""
ARRIVAL = 60.0
"""Seconds for which a rank tries to find the others."""
PATIENCE = 20.0
"""Seconds for which a rank with an error waits for the others to hear of it."""
GONE = "another process that holds a part of the model is gone"
KEPT = "what is stored stays, and the same command goes on from there"

T = TypeVar("T")


class Ranks:
    """The processes of one group, seen from one of them.

    Args:
        group: From ``mx.distributed.init``.
    """

    def __init__(self, group: Any) -> None:
        self.group, self.rank, self.size = group, int(group.rank()), int(group.size())
        self.over = False
        """The others are gone, or elsewhere: nothing more can be asked of them."""
        self._step = 0

    @classmethod
    def start(cls) -> "Ranks":
        """The group that this process was started in; waits for the others of it.

        Raises:
            RanksError: there is no group, or not all of its processes came.
        """
        text = "the other processes of the group did not come"
        late = threading.Timer(2 * ARRIVAL, _gone, [text])
        late.daemon = True
        late.start()
        try:
            found = cls(_group(time.monotonic() + ARRIVAL))
        finally:
            late.cancel()
        if found.size == 1:
            raise RanksError(
                "--shard divides a model over several processes, and this is the only one; start "
                "it as `mlx.launch -n 2 PYTHON -m mlxroles.cli ...`"
            )
        found.watch()
        return found

    @property
    def leads(self) -> bool:
        """Whether this rank writes and shows: the others only compute."""
        return self.rank == 0

    # --- lives --------------------------------------------------------------------------------

    def watch(self) -> None:
        """Ends this process when another one is gone and MLX does not say so.

        The ring fails what is under way when a connection is lost, and waits for ever in what is
        queued behind it. So each rank holds a connection to the first, which nothing is said on;
        where none can be made, that is all there is.

        Raises:
            RanksError: another rank is lost already.
        """
        host, listener = _first_host(), None
        if self.leads and host is not None:
            with suppress(OSError):
                listener = socket.create_server((host, 0))
        port = None if listener is None else listener.getsockname()[1]
        port, token = self.exchange([port, secrets.token_hex(16)])[0]
        if listener is not None:
            self._in_background(self._accept, listener, token.encode())
        elif port is not None and host is not None:
            self._in_background(self._join, host, int(port), token.encode())

    def _in_background(self, work: Callable[..., None], *given: Any) -> None:
        threading.Thread(target=work, args=given, daemon=True).start()

    def _accept(self, listener: socket.socket, token: bytes) -> None:
        with suppress(OSError), listener:
            listener.settimeout(ARRIVAL)
            expected = self.size - 1
            while expected:
                line, _ = listener.accept()
                line.settimeout(ARRIVAL)
                if line.recv(len(token), socket.MSG_WAITALL) == token:
                    expected -= 1
                    self._in_background(self._listen, line)
                else:
                    line.close()

    def _join(self, host: str, port: int, token: bytes) -> None:
        with suppress(OSError):
            line = socket.create_connection((host, port), ARRIVAL)
            line.sendall(token)
            self._listen(line)

    def _listen(self, line: socket.socket) -> None:
        """Waits for the other end's last word, or for its end without one."""
        line.settimeout(None)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        atexit.register(_leave, line)
        said = b""
        with suppress(OSError):
            said = line.recv(1)
        if said:
            return
        time.sleep(PATIENCE)
        if not self.over:
            _gone(f"{'' if self.leads else f'rank {self.rank}: '}{GONE}; {KEPT}")

    # --- arrays -------------------------------------------------------------------------------

    def gathered(self, array: mx.array, axis: int) -> mx.array:
        """The arrays of all ranks, one after the other along an axis."""
        first = mx.contiguous(mx.moveaxis(array, axis, 0))
        return mx.moveaxis(mx.distributed.all_gather(first, group=self.group), 0, axis)

    def own(self, array: mx.array, axis: int) -> mx.array:
        """This rank's part of a gathered array."""
        return mx.split(array, self.size, axis=axis)[self.rank]

    # --- words --------------------------------------------------------------------------------

    def exchange(self, value: Any = None, error: MlxrolesError | None = None) -> list[Any]:
        """What every rank says here, in the order of ranks; JSON values.

        Args:
            value: What this rank says.
            error: What keeps this rank from going on; then none of them does.

        Raises:
            MlxrolesError: this rank's own error; or, on the first rank, another one's.
            RanksError: another rank could not go on, is lost, or is elsewhere in its work.
        """
        self._step += 1
        told = None if error is None else str(error)
        words = json.dumps({"value": value, "error": told}).encode()
        alone = threading.Timer(PATIENCE, _gone, [f"rank {self.rank}: {error}"])
        alone.daemon = True
        if error is not None:
            alone.start()
        try:
            said = self._all(words)
        except RanksError:
            self.over = True
            if error is not None:
                raise error from None  # the others cannot be told
            raise
        finally:
            alone.cancel()
        failed = [rank for rank, answer in enumerate(said) if answer["error"] is not None]
        self.over = bool(failed)
        if error is not None:
            raise error if self.leads else _Told(told)
        if failed:
            text = f"rank {failed[0]}: {said[failed[0]]['error']}"
            raise RanksError(text) if self.leads else _Told(text)
        return [answer["value"] for answer in said]

    def step(self, action: Callable[[], T]) -> T:
        """Does what all ranks do here, and goes on when all of them have done it.

        Raises:
            MlxrolesError: what ``action`` raises, or another rank cannot go on.
        """
        value = self.attempt(action)
        self.exchange()
        return value

    def attempt(self, action: Callable[[], T]) -> T:
        """Does something; an error of ours is told to the others, any other one ends this rank.

        Raises:
            MlxrolesError: as ``exchange``.
        """
        try:
            return action()
        except RanksError:
            self.over = True
            raise
        except MlxrolesError as error:
            self.exchange(error=error)
            raise
        except Exception as error:
            self.over = True
            raise _lost(error) from error

    def _all(self, words: bytes) -> list[dict[str, Any]]:
        header = mx.array([[MARK, self._step & 0x7FFFFFFF, len(words)]], dtype=mx.int32)
        try:
            heads = self._heard(header)
            if (heads[:, :2] != np.array(header)[:, :2]).any():
                raise RanksError("the processes have lost step with each other; start them again")
            room = np.zeros((1, int(heads[:, 2].max())), np.uint8)
            room[0, : len(words)] = np.frombuffer(words, np.uint8)
            rows = self._heard(mx.array(room))
        except RuntimeError as error:
            raise _lost(error) from error
        return [
            json.loads(row[:n].tobytes()) for row, n in zip(rows, heads[:, 2].tolist(), strict=True)
        ]

    def _heard(self, row: mx.array) -> np.ndarray:
        """The rows of all ranks.

        NumPy would pass over the error of a lost connection and read what the memory held before.
        """
        rows = mx.distributed.all_gather(row, group=self.group)
        mx.eval(rows)
        return np.array(rows)

    def least(self, amount: int) -> int:
        """The smallest of what the ranks have of something, so that all go by the same number."""
        return min(self.exchange(amount))

    def first(self, value: Any) -> Any:
        """What the first rank says, where ranks could differ in the last bit."""
        return self.exchange(value)[0]


class _Told(RanksError):
    """An error that the first rank knows of and shows."""


def _group(end: float) -> Any:
    """The group, tried for until a time: MLX itself gives up after some seconds.

    Raises:
        RanksError: not all processes are there.
    """
    while True:
        try:
            return mx.distributed.init()
        except RuntimeError as error:
            if time.monotonic() > end:
                text = f"the processes of the group did not find each other ({error})"
                raise RanksError(text) from error
        time.sleep(0.2)


def _first_host() -> str | None:
    """The address of the first rank in the list of hosts that a ring is made from."""
    try:
        hosts = json.loads(Path(os.environ["MLX_HOSTFILE"]).read_text(encoding="utf-8"))
        return str(hosts[0][0]).rpartition(":")[0].strip("[]") or None
    except (KeyError, OSError, ValueError, IndexError, TypeError):
        return None


def _leave(line: socket.socket) -> None:
    """Says on a connection that this process ends as it should."""
    with suppress(OSError):
        line.send(b".")


def _gone(text: str) -> None:
    """Ends a process whose main thread waits for ranks that do not come."""
    if sys.__stderr__ is not None:
        sys.__stderr__.write(f"error: {safe_text(text)}\n")
        sys.__stderr__.flush()
    os._exit(1)


def _lost(error: Exception) -> RanksError:
    """What to say where computing together failed on this rank."""
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    is_peer = any(word in text for word in PEERS)
    what = GONE if is_peer else "this process cannot go on with its part of the model"
    return RanksError(f"{what} ({text}); {KEPT}")


def is_told(error: BaseException) -> bool:
    """Whether the first rank shows an error, so that this one need not."""
    return isinstance(error, _Told)
