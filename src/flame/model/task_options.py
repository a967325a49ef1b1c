"""What the options of tasks may be, and what a task gets that leaves one out."""

from __future__ import annotations

from flame.model.errors import InvalidArgumentError
from flame.model.specs import NO_OPTIONS, TaskOptions

MAX_MS = 2**32 - 1  # 49.7 days: what the wire can carry
MAX_RETRIES = 1_000_000
MAX_PRIORITY = 2**31 - 1
MAX_KEY = 512  # characters
MAX_PER_KEY = 1_000_000
RETRY_MAX_DELAY_MS = 60_000  # where none is given


def check_options(options: TaskOptions) -> None:
    """Raises InvalidArgumentError that names the first value that can't be."""
    times = (
        ("timeout_ms", options.timeout_ms),
        ("deadline_ms", options.deadline_ms),
        ("retry_delay_ms", options.retry_delay_ms),
        ("retry_max_delay_ms", options.retry_max_delay_ms),
    )
    for name, value in times:
        if not 0 <= value <= MAX_MS:
            raise InvalidArgumentError(f"{name} {value} of a task is not between 0 and {MAX_MS}")
    if options.max_retries is not None and not 0 <= options.max_retries <= MAX_RETRIES:
        raise InvalidArgumentError(f"max_retries {options.max_retries} of a task is not between 0 and {MAX_RETRIES}")
    if not -MAX_PRIORITY <= options.priority <= MAX_PRIORITY:
        raise InvalidArgumentError(f"priority {options.priority} of a task is beyond {MAX_PRIORITY}")
    if 0 < options.retry_max_delay_ms < options.retry_delay_ms:
        raise InvalidArgumentError(
            f"retry_max_delay {options.retry_max_delay_ms} ms of a task is less than its retry_delay, "
            f"{options.retry_delay_ms} ms"
        )
    if len(options.key) > MAX_KEY or "\0" in options.key:
        raise InvalidArgumentError(f"key {options.key[:40]!r} of a task is over {MAX_KEY} characters or holds a NUL")


def check_defaults(options: TaskOptions) -> None:
    """As check_options, for the defaults of a session's tasks."""
    check_options(options)
    if options.idempotency_key:
        raise InvalidArgumentError(
            f"idempotency_key {options.idempotency_key!r} in the task_defaults would make all tasks the same one"
        )


def check_per_key(most: int) -> None:
    """Raises InvalidArgumentError when `most` can't be a session's max_running_per_key."""
    if not 0 <= most <= MAX_PER_KEY:
        raise InvalidArgumentError(f"max_running_per_key {most} of a session is not between 0 and {MAX_PER_KEY}")


def with_defaults(options: TaskOptions, defaults: TaskOptions) -> TaskOptions:
    """The options of a task in a session with these defaults: what it leaves at zero or empty is the session's."""
    if defaults is NO_OPTIONS or defaults == NO_OPTIONS:
        return options
    if options == NO_OPTIONS:
        return defaults
    return TaskOptions(
        timeout_ms=options.timeout_ms or defaults.timeout_ms,
        max_retries=defaults.max_retries if options.max_retries is None else options.max_retries,
        priority=options.priority or defaults.priority,
        idempotency_key=options.idempotency_key,
        labels={**defaults.labels, **options.labels},
        deadline_ms=options.deadline_ms or defaults.deadline_ms,
        retry_delay_ms=options.retry_delay_ms or defaults.retry_delay_ms,
        retry_max_delay_ms=options.retry_max_delay_ms or defaults.retry_max_delay_ms,
        key=options.key or defaults.key,
    )


def retry_delay_ms(options: TaskOptions, failures: int) -> int:
    """The pause after so many failures (at least 1), in milliseconds."""
    if not options.retry_delay_ms:
        return 0
    most = options.retry_max_delay_ms or max(RETRY_MAX_DELAY_MS, options.retry_delay_ms)
    return min(most, options.retry_delay_ms << min(failures - 1, 32))


def after_attempts(message: str, attempts: int) -> str:
    """The failure text of a task's last attempt, with their number when it was not the only one."""
    return f"{message} (after {attempts} attempts)" if attempts > 1 else message
