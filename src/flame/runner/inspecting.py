"""Looking into the inputs and outputs of a Runner's tasks: `get_data(task.input)`."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from flame.model.errors import NotFoundError
from flame.objects.keys import ObjectRef
from flame.objects.nearby import configured
from flame.runner.payloads import PICKLE, STATE, STORED, STORED_VALUE, TAG, VALUES, bare, load_call, parts_of
from flame.runner.storage import Storage

_DEPTH = 10  # of lists, tuples and dicts whose references are followed


class ErrorType(StrEnum):
    """Why data can't be shown."""

    DECODE_ERROR = "decode_error"
    CACHE_RETRIEVAL_ERROR = "cache_retrieval_error"
    DATA_FORMAT_ERROR = "data_format_error"


class RunnerError(Exception):
    """Data of a task can't be shown. `key` is that of the object that is missing, `data_type` what was found."""

    def __init__(
        self,
        error_type: ErrorType,
        message: str,
        cause: Exception | None = None,
        key: str | None = None,
        data_type: str | None = None,
    ) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.message = message
        self.cause = cause
        self.key = key
        self.data_type = data_type

    def __str__(self) -> str:
        return f"[{self.error_type.value}] {self.message}"


@dataclass
class TaskInputData:
    """A call. `type` is "input"."""

    method: str | None
    args: list[Any] | tuple[Any, ...]
    kwargs: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    type: str = "input"

    def to_dict(self) -> dict[str, Any]:
        """As get_data gives it."""
        return {name: getattr(self, name) for name in ("type", "method", "args", "kwargs", "metadata")}


@dataclass
class TaskOutputData:
    """A result. `type` is "output"."""

    result: Any
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    type: str = "output"

    def to_dict(self) -> dict[str, Any]:
        """As get_data gives it."""
        return {name: getattr(self, name) for name in ("type", "result", "metadata")}


def get_data(data: bytes, storage: Storage | None = None) -> dict[str, Any]:
    """What a task's input or output says: {"type": "input", "method", "args", "kwargs", "metadata"} for a call,
    {"type": "output", "result", "metadata"} for a result.

    Objects of the cache are fetched, also those that arguments refer to in lists, tuples and dicts. A result that was
    small enough to travel with its task and is a tuple like that of a call can't be told from one. Raises RunnerError.
    """
    reader = _Reader(storage or Storage("shared/shared", configured()))
    if not data:
        raise RunnerError(ErrorType.DECODE_ERROR, "there is no data", data_type="empty")
    return reader.read(bare(data), of_state=data[:TAG] == STATE)


class _Reader:
    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def read(self, data: bytes, *, of_state: bool) -> dict[str, Any]:
        tag = data[:TAG]
        if tag == VALUES:
            call, results = parts_of(data)
            values = [self._fetch("result", lambda result=result: self._storage.value(result)) for result in results]
            return self._call(_unpickled(lambda: load_call(call, values)))
        if tag == STORED_VALUE:
            ref = ObjectRef.decode(data[TAG:])
            result = self._fetch(ref.key, lambda: self._storage.value(data))
            return TaskOutputData(result, {"object_ref_key": ref.key}).to_dict()
        if tag == STORED:
            ref = ObjectRef.decode(data[TAG:])
            inner = self.read(self._fetch(ref.key, lambda: self._storage.payload(data)), of_state=of_state)
            inner["metadata"]["object_ref_key"] = ref.key
            return inner
        if data[:1] == PICKLE:
            return self._pickled(_unpickled(lambda: pickle.loads(data)))
        return self._reference(data)

    def _pickled(self, value: Any) -> dict[str, Any]:
        match value:
            case (str() | None, tuple(), dict()):
                return self._call(value)
            case _ if all(hasattr(value, name) for name in ("method", "args", "kwargs")):
                return self._call((value.method, value.args or (), value.kwargs or {}))
            case _:
                return TaskOutputData(value).to_dict()

    def _call(self, call: Any) -> dict[str, Any]:
        method, args, kwargs = call
        return TaskInputData(method, self._resolved(args, 0), self._resolved(kwargs, 0)).to_dict()

    def _reference(self, data: bytes) -> dict[str, Any]:
        """The output of a task of `flamepy`: a reference and nothing else."""
        try:
            ref = ObjectRef.decode(data)
        except Exception as error:
            raise RunnerError(
                ErrorType.DECODE_ERROR, f"this is no data of a Runner's task: {error}", error, data_type="bytes"
            ) from error
        result = self._get(ref)
        if isinstance(result, bytes):
            try:
                result = pickle.loads(result)
            except Exception:
                pass  # bytes were the result
        return TaskOutputData(result, {"object_ref_key": ref.key}).to_dict()

    def _resolved(self, value: Any, depth: int) -> Any:
        if depth > _DEPTH:
            return value
        # By name: those of flamepy are of a class of its own.
        if type(value).__name__ == "ObjectRef":
            return self._get(ObjectRef(value.endpoint, value.key, value.version))
        match value:
            case list():
                return [self._resolved(item, depth + 1) for item in value]  # pyright: ignore[reportUnknownVariableType]
            case tuple() if type(value) is tuple:  # pyright: ignore[reportUnknownArgumentType]
                return tuple(self._resolved(item, depth + 1) for item in value)  # pyright: ignore[reportUnknownVariableType]
            case dict():
                return {key: self._resolved(item, depth + 1) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
            case _:
                return value

    def _get(self, ref: ObjectRef) -> Any:
        return self._fetch(ref.key, lambda: self._storage.get(ref))

    def _fetch(self, key: str, get: Callable[[], Any]) -> Any:
        try:
            return get()
        except NotFoundError as error:
            raise RunnerError(
                ErrorType.CACHE_RETRIEVAL_ERROR, f"the object {key} is gone: {error.message}", error, key
            ) from error
        except Exception as error:
            raise RunnerError(
                ErrorType.CACHE_RETRIEVAL_ERROR, f"the object {key} can't be had: {error}", error, key
            ) from error


def _unpickled(load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:
        raise RunnerError(
            ErrorType.DECODE_ERROR, f"it can't be unpickled: {type(error).__name__}: {error}", error, data_type="pickle"
        ) from error
