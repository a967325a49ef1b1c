"""Files that foreign clients wrote into the cache's folder themselves, and those of the reference's own cache.

A `flamepy` client whose settings name the same folder writes `<application>/<session>/<object>.arrow` there instead of
sending the object. Such a file becomes an object when somebody asks for it, or when the cache starts.
"""

from __future__ import annotations

import logging
import stat
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from flame.cache.cache import ObjectCache
from flame.cache.receiving import Receiving, stream_writer
from flame.model.errors import FlameError
from flame.objects import codecs
from flame.objects.keys import InvalidKeyError, ObjectKey
from flame.objects.messages import Options

_log = logging.getLogger("flame.cache")
_SUFFIX, _DELTAS = ".arrow", ".deltas"


class Dropped:
    """The files of others below a folder."""

    def __init__(self, folder: Path, cache: ObjectCache) -> None:
        self._folder = folder
        self._cache = cache

    def take_all(self) -> None:
        """Make objects of all there are."""
        for path in sorted(self._folder.glob(f"*/*/*{_SUFFIX}")):
            application, session, name = path.parts[-3:]
            if not application.startswith("."):
                try:
                    self.take(ObjectKey(application, session, name.removesuffix(_SUFFIX)))
                except InvalidKeyError:
                    continue

    def take(self, key: ObjectKey) -> bool:
        """Make an object of the file for a key, if there is one that can be read."""
        path = self._path(key)
        if not _is_file(path):
            return False
        try:
            self._store(key, path, Options())
            for delta in self._deltas(path):
                self._store(key, delta, Options(patch=True))
        except (pa.ArrowException, OSError, FlameError) as error:
            _log.warning("file_not_taken file=%s why=%s", path, error)
            return False
        self.forget(key)
        return True

    def forget(self, key: ObjectKey) -> None:
        """Remove the files that a key or prefix means."""
        if key.object_id is not None:
            paths = [self._path(key)]
        else:
            paths = [path for path in self._folder.glob(f"*/*/*{_SUFFIX}") if key.matches_key(_key_of(path))]
        for path in paths:
            for delta in self._deltas(path):
                delta.unlink(missing_ok=True)
            path.unlink(missing_ok=True)

    def _path(self, key: ObjectKey) -> Path:
        return self._folder / key.app_name / key.session_id / f"{key.object_id}{_SUFFIX}"

    def _deltas(self, path: Path) -> list[Path]:
        found = [one for one in path.with_suffix(_DELTAS).glob(f"*{_SUFFIX}") if one.stem.isdigit() and _is_file(one)]
        return sorted(found, key=lambda one: int(one.stem))

    def _store(self, key: ObjectKey, path: Path, options: Options) -> None:
        with pa.OSFile(str(path), "rb") as source, pa.ipc.open_file(source) as reader:
            schema: Any = reader.schema
            table = codecs.FORMAT_KEY in (schema.metadata or {}) and not options.patch
            receiving = Receiving(self._cache, table=table)
            try:
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
                if table:
                    with stream_writer(receiving, schema) as stream:
                        for one in batches:
                            stream.write_batch(one)
                else:
                    for one in batches:
                        values = cast("Any", one).column("data")
                        for value in values:
                            receiving.write(value.as_buffer())
                payload = receiving.finish()
            except BaseException:
                receiving.abandon()
                raise
        self._cache.commit(key, payload, Options(table=table, patch=options.patch))


def _key_of(path: Path) -> str:
    return "/".join((*path.parts[-3:-1], path.name.removesuffix(_SUFFIX)))


def _is_file(path: Path) -> bool:
    """Whether this is a plain file: a link could lead anywhere."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False
