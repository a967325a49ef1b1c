"""Settings of every component: read at run time, unknown keys rejected with the nearest known one."""

from flame.config.cluster import (
    CacheSection,
    ClusterConfig,
    ClusterSection,
    EvictionSection,
    ExecutorLimits,
    ExecutorsSection,
    LimitsSection,
    RecoverySection,
    SessionRecovery,
    TlsConfig,
    default_cluster_file,
    load_cluster,
    read_cluster,
)
from flame.config.context import (
    ClientCache,
    ClientContext,
    ClientPackage,
    ClientRunner,
    default_context_file,
    load_context,
    read_contexts,
)
from flame.config.document import Note

__all__ = [
    "CacheSection",
    "ClientCache",
    "ClientContext",
    "ClientPackage",
    "ClientRunner",
    "ClusterConfig",
    "ClusterSection",
    "EvictionSection",
    "ExecutorLimits",
    "ExecutorsSection",
    "LimitsSection",
    "Note",
    "RecoverySection",
    "SessionRecovery",
    "TlsConfig",
    "default_cluster_file",
    "default_context_file",
    "load_cluster",
    "load_context",
    "read_cluster",
    "read_contexts",
]
