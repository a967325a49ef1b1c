"""joblib on a cluster: `flame.register_joblib()`, then `joblib.parallel_backend("flame")`."""

# joblib has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportIncompatibleMethodOverride=false, reportAssignmentType=false
# pyright: reportUntypedBaseClass=false, reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flame.model.errors import InvalidConfigError
from flame.runner.application import connection_of_user
from flame.runner.kept import KeptExecutors

try:
    import joblib
    from joblib.parallel import AutoBatchingMixin, ParallelBackendBase
except ImportError as error:
    raise InvalidConfigError("joblib is not installed", remedy="pip install joblib") from error

if TYPE_CHECKING:
    from flame.runner.executor import Executor


class FlameBackend(AutoBatchingMixin, ParallelBackendBase):
    """Runs the calls of a `joblib.Parallel` on a cluster. Further arguments of `parallel_backend("flame", ...)` are
    those of an Executor, which serves the next `Parallel` with the same ones as well."""

    supports_retrieve_callback = True
    supports_return_generator = True
    supports_timeout = True
    default_n_jobs = -1

    def __init__(self, **arguments: Any) -> None:
        super().__init__(nesting_level=arguments.pop("nesting_level", None))
        self._arguments = arguments
        self._executor: Executor | None = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many instances there may be; -1 = one per core of the cluster."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        if n_jobs > 0:
            return n_jobs
        connection = self._arguments.get("connection") or connection_of_user()
        cores = sum(node.capacity.cpu for node in connection.list_nodes())
        return max(1, cores + 1 + n_jobs)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
        """A `Parallel` begins."""
        n_jobs = self.effective_n_jobs(n_jobs)
        self._executor = _kept.take(n_jobs, self._arguments)
        self.parallel = parallel
        return n_jobs

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> Any:
        """Run a batch of calls."""
        assert self._executor is not None
        future = self._executor.submit(func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Any) -> Any:
        """The results of a batch."""
        return out.result()

    def terminate(self) -> None:
        """The `Parallel` has ended."""
        executor, self._executor = self._executor, None
        if executor is not None:
            _kept.give_back(executor)
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Something raised: what has not ended is cancelled."""
        executor, self._executor = self._executor, None
        if executor is not None:
            _kept.drop(executor)
        if ensure_ready:
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel)


_kept = KeptExecutors()


def register_joblib() -> None:
    """Make `joblib.parallel_backend("flame")` work. Raises InvalidConfigError when joblib is not installed."""
    joblib.register_parallel_backend("flame", FlameBackend)
