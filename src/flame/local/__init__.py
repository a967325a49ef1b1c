"""The embedded cluster: all of Flame for this machine in one process, started when it is needed."""

from flame.local.cluster import Cluster, default_endpoint, find_or_start

__all__ = ["Cluster", "default_endpoint", "find_or_start"]
