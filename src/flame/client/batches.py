"""Tasks that leave together: taken from the buffer, numbered, numbered anew, cut in two."""

from __future__ import annotations

import threading
from collections import deque

from flame.client.chunks import Owner
from flame.client.futures import CancelledTaskError, TaskFuture, settle
from flame.client.gather import Gather
from flame.proto import link_pb2
from flame.proto import types_pb2 as ty

BATCH_TASKS = 512
BATCH_BYTES = 1 << 20

Item = tuple["bytes | None", "TaskFuture | Gather", "ty.TaskOptions | None"]


class Batch:
    """Tasks that were sent together and are not accepted yet."""

    __slots__ = ("body", "count", "first_seq", "input_bytes", "owner")

    def __init__(self, first_seq: int, count: int, input_bytes: int, owner: Owner, body: bytes) -> None:
        self.first_seq = first_seq
        self.count = count
        self.input_bytes = input_bytes
        self.owner = owner
        self.body = body

    def renumber(self, first_seq: int) -> None:
        """It starts at this number now."""
        message = link_pb2.Submit.FromString(self.body)
        message.first_seq = self.first_seq = first_seq
        self.body = message.SerializeToString()

    def cut(self, count: int) -> Batch | None:
        """Keep the first `count` tasks; gives the batch of the others, None when there are none."""
        if self.count <= count:
            return None
        if isinstance(self.owner, list):
            mine, theirs = self.owner[:count], self.owner[count:]
        else:
            mine, theirs = self.owner, (self.owner[0], self.owner[1] + count)
        whole = link_pb2.Submit.FromString(self.body)
        kept, rest = link_pb2.Submit(), link_pb2.Submit()
        for part in (kept, rest):
            part.CopyFrom(whole)
        del kept.inputs[count:], rest.inputs[:count]
        kept.absent[:] = [index for index in whole.absent if index < count]
        rest.absent[:] = [index - count for index in whole.absent if index >= count]
        kept_bytes = sum(map(len, kept.inputs))
        others = Batch(0, self.count - count, self.input_bytes - kept_bytes, theirs, rest.SerializeToString())
        self.owner = mine
        self.count, self.input_bytes, self.body = count, kept_bytes, kept.SerializeToString()
        return others


def take_batch(buffer: deque[Item], first_seq: int, most: int, lock: threading.Lock) -> Batch | None:
    """Tasks from the front of the buffer that fit together: same options, same consumer, up to the limits.

    `most` tasks of a `map` at a time; `lock` is that of the stream, for futures that were cancelled meanwhile.
    """
    inputs: list[bytes] = []
    absent: list[int] = []
    futures: list[TaskFuture | None] = []
    size = 0
    _, first_owner, options = buffer[0]
    gather = first_owner if isinstance(first_owner, Gather) else None
    limit = BATCH_TASKS if gather is None else most
    while buffer and len(inputs) < limit:
        payload, owner, its_options = buffer[0]
        if its_options is not options:
            break
        if gather is not None:
            if owner is not gather:
                break
            if gather.closed:
                buffer.popleft()
                continue
        elif isinstance(owner, Gather):
            break
        elif owner._cancel_wanted:  # pyright: ignore[reportPrivateUsage]
            buffer.popleft()
            settle(lock, (owner,), (CancelledTaskError("cancelled before it was sent"),), plain=False)
            continue
        else:
            futures.append(owner)
        if payload is None:
            absent.append(len(inputs))
            inputs.append(b"")
        else:
            size += len(payload)
            if size > BATCH_BYTES and inputs:
                if gather is None:
                    futures.pop()
                size -= len(payload)
                break
            inputs.append(payload)
        buffer.popleft()
    count = len(inputs)
    if not count:
        return None
    message = link_pb2.Submit(first_seq=first_seq, inputs=inputs, absent=absent)
    if options is not None:
        message.options.CopyFrom(options)
    owned: Owner = futures
    if gather is not None:
        owned = (gather, gather.sent)
        gather.sent += count
    return Batch(first_seq, count, size, owned, message.SerializeToString())
