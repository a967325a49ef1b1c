"""Whose turn it is: the sessions that lack executors, by tenant and shape, and the most deserving of them all."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush, heapreplace

from flame.model.resources import Resources
from flame.scheduler.books import Ask
from flame.scheduler.groups import Group, Limit, dominant
from flame.scheduler.policy import Policies
from flame.scheduler.rooms import Shape

Rank = tuple[float, ...]


class Queue:
    """Sessions of one tenant, application and shape that lack executors; `heap` holds (rank, session, stamp)."""

    __slots__ = ("application", "epoch", "group", "heap", "members", "priority", "shape")

    def __init__(self, group: Group, application: Limit, shape: Shape, priority: int) -> None:
        self.group = group
        self.application = application
        self.shape = shape
        self.priority = priority  # of all its sessions, when priority goes before everything; else 0
        self.heap: list[tuple[Rank, str, int]] = []
        self.members: dict[str, Ask] = {}
        self.epoch = -1


class Waiting:
    """All queues. Remembered ranks hold shares of `yardstick`: the cluster's size, but for growth that leaves the ratio
    of its resources and so the order of shares as they are. `epoch` grows with each new one."""

    def __init__(self, policies: Policies) -> None:
        self.policies = policies
        self.queues: dict[tuple[str, str, object, int], Queue] = {}
        self.total = Resources()
        self.yardstick = Resources()
        self.epoch = 0

    def resize(self, total: Resources) -> None:
        if total != self.total:
            self.total = total
            if not _alike(self.yardstick, total):
                self.yardstick = total
                self.epoch += 1

    def rank(self, ask: Ask) -> Rank:
        """By the policies in their order, then by share, then by who has waited for longest, then by age."""
        share = dominant(ask.resreq, self.yardstick) * ask.coming if self.policies.fair else 0.0
        return (*self.policies.rank(ask), share, float(ask.turn if self.policies.fair else 0), float(ask.created))

    def richness(self, ask: Ask) -> Rank:
        """Key of a session among those of its tenant: the smallest gives first."""
        share = dominant(ask.resreq, self.yardstick) * ask.have
        return (*(-value for value in self.policies.rank(ask)), -share)

    def update(self, ask: Ask) -> None:
        """The session lacks executors, or does not any more, or its rank changed."""
        queue = ask.lane
        if not ask.lacking:
            if isinstance(queue, Queue):
                self.remove(ask)
            return
        if not isinstance(queue, Queue):
            assert isinstance(ask.shape, Shape)
            priority = ask.priority if self.policies.priority_first else 0
            key = (ask.group.name, ask.application.name, ask.shape.key, priority)
            queue = self.queues.get(key)
            if queue is None:
                queue = self.queues[key] = Queue(ask.group, ask.application, ask.shape, priority)
            queue.members[ask.session] = ask
            ask.lane = queue
        ask.stamp += 1
        heappush(queue.heap, (self.rank(ask), ask.session, ask.stamp))
        if len(queue.heap) > 4 * len(queue.members) + 64:
            self._rebuild(queue)

    def remove(self, ask: Ask) -> None:
        queue = ask.lane
        if isinstance(queue, Queue):
            ask.lane = None
            ask.stamp += 1
            del queue.members[ask.session]
            if not queue.members:
                del self.queues[(queue.group.name, queue.application.name, queue.shape.key, queue.priority)]

    def head(self, queue: Queue, passed: Iterable[str] = ()) -> Ask | None:
        """The session whose turn it is, without those `passed` over in this pass (they are put back by `restore`)."""
        if queue.epoch != self.epoch:
            self._rebuild(queue)
        while queue.heap:
            _, session, stamp = queue.heap[0]
            ask = queue.members.get(session)
            if ask is not None and ask.stamp == stamp and session not in passed:
                return ask
            heappop(queue.heap)
        return None

    def _rebuild(self, queue: Queue) -> None:
        queue.epoch = self.epoch
        queue.heap = [(self.rank(ask), ask.session, ask.stamp) for ask in queue.members.values()]
        heapify(queue.heap)


def _alike(one: Resources, other: Resources) -> bool:
    """Whether the ratio of cpu, memory and GPUs is the same within a hundredth."""
    pairs = ((one.cpu, other.cpu), (one.memory, other.memory), (one.gpu, other.gpu))
    if any((a > 0) != (b > 0) for a, b in pairs):
        return False
    growth = [b / a for a, b in pairs if a]
    return not growth or max(growth) <= min(growth) * 1.01


class Turns:
    """One pass over some queues: hands out the queue whose turn it is while shares change. Only tenants are put in
    order at first; the queues of one are looked at when its turn comes."""

    def __init__(self, waiting: Waiting, queues: Iterable[Queue], root: Group, passed: set[str]) -> None:
        self.waiting = waiting
        self.passed = passed
        self.fair = waiting.policies.fair
        self.levels: dict[Group, list[tuple[tuple[int, float, int, str], int, Group]]] = {}
        self.leaves: dict[Group, list[Queue]] = {}
        self.ordered: dict[Group, list[tuple[Rank, int, Queue]]] = {}  # of the leaves whose turn came
        self.root = root
        classes: dict[int, list[Queue]] = {}
        for queue in queues:
            classes.setdefault(queue.priority, []).append(queue)
        self.classes = sorted(classes.items())  # the highest last
        self.count = 0

    def _open(self, queues: list[Queue]) -> None:
        """Put the tenants of one class of priority in order."""
        self.levels.clear()
        self.leaves.clear()
        self.ordered.clear()
        for queue in queues:
            self.leaves.setdefault(queue.group if self.fair else self.root, []).append(queue)
        for leaf in self.leaves:
            group = leaf
            while group.parent is not None:
                level = self.levels.get(group.parent)
                known = level is not None
                if level is None:
                    level = self.levels[group.parent] = []
                self.count += 1
                level.append((group.order(self.waiting.total), self.count, group))
                if known:
                    break
                group = group.parent
        for level in self.levels.values():
            heapify(level)

    def _leaf(self, group: Group) -> list[tuple[Rank, int, Queue]]:
        """The group's queues that have a session left, as a heap."""
        leaf = self.ordered.get(group)
        if leaf is None:
            leaf = self.ordered[group] = []
            for queue in self.leaves[group]:
                if self.waiting.head(queue, self.passed) is not None:
                    self.count += 1
                    leaf.append((queue.heap[0][0], self.count, queue))
            heapify(leaf)
        return leaf

    def next(self) -> Queue | None:
        """The queue of the most deserving session; it stays on top until `served` or `done` is called."""
        while True:
            path = self._path()
            if path is None:
                if not self.classes:
                    return None
                self._open(self.classes.pop()[1])
                continue
            leaf = self._leaf(path[-1])
            if leaf:
                return leaf[0][2]
            self._cut(path)

    def _path(self) -> list[Group] | None:
        group = self.root
        path = [group]
        while group not in self.leaves:
            level = self.levels.get(group)
            if not level:
                return None
            group = level[0][2]
            path.append(group)
        return path if len(path) > 1 or self._leaf(group) else None

    def _cut(self, path: list[Group]) -> None:
        """This leaf has nothing more in this pass; nor have the tenants above it that had only this."""
        for child, parent in zip(reversed(path), reversed(path[:-1]), strict=False):
            self.leaves.pop(child, None)
            level = self.levels[parent]
            heappop(level)
            if level:
                return
            del self.levels[parent]

    def served(self, queue: Queue) -> None:
        """The session on top got an executor: its share and those of the tenants above it grew."""
        path = self._path()
        assert path is not None
        leaf = self._leaf(path[-1])
        head = self.waiting.head(queue, self.passed)
        if head is None:
            heappop(leaf)
        else:
            heapreplace(leaf, (queue.heap[0][0], leaf[0][1], queue))
        for child, parent in zip(reversed(path), reversed(path[:-1]), strict=False):
            level = self.levels[parent]
            heapreplace(level, (child.order(self.waiting.total), level[0][1], child))

    def done(self) -> None:
        """The queue on top gets nothing more in this pass."""
        path = self._path()
        assert path is not None
        heappop(self._leaf(path[-1]))
