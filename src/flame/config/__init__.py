"""Settings of every component: read at run time, unknown keys rejected with the nearest known one."""

from flame.config.addresses import TlsConfig
from flame.config.cache import CacheSection, EvictionSection
from flame.config.cluster import (
    ClusterConfig,
    ClusterSection,
    LimitsSection,
    NodeRecovery,
    RecoverySection,
    SchedulingSection,
    SessionRecovery,
    TaskRecovery,
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
from flame.config.executors import ExecutorLimits, ExecutorsSection, WarmSection

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
    "NodeRecovery",
    "Note",
    "RecoverySection",
    "SchedulingSection",
    "SessionRecovery",
    "TaskRecovery",
    "TlsConfig",
    "WarmSection",
    "default_cluster_file",
    "default_context_file",
    "load_cluster",
    "load_context",
    "read_cluster",
    "read_contexts",
]
