"""The second tier: files that the disk has no room for, in an S3-compatible store (or a folder that is mounted).

A file that went there leaves its head behind, so the cache knows its objects after a restart without asking. It comes
back when somebody reads it. The disk keeps a file until the store has it whole, and the store until the disk has it.
"""

from __future__ import annotations

import logging

import msgspec

from flame.cache.disk import Disk, GoneError, StoredFile
from flame.model.errors import InvalidConfigError, UnavailableError

_log = logging.getLogger("flame.cache")
_STEP = 8 * 1024 * 1024


class Far:
    """Files in the store at an URL such as `s3://BUCKET/PREFIX?endpoint_override=HOST:PORT&scheme=http&region=R`.

    Credentials come from where AWS's own tools look: the environment, `~/.aws`, the machine's role.
    """

    def __init__(self, url: str, disk: Disk) -> None:
        from pyarrow.fs import FileSystem

        try:
            self._files, self._root = FileSystem.from_uri(url)
        except (OSError, ValueError) as error:
            raise InvalidConfigError(f"invalid cache.object_store {url!r}: {error}") from None
        self._disk = disk

    def send(self, file: StoredFile) -> StoredFile:
        """Move a payload to the store; its head that stays.

        Raises UnavailableError (the file is where it was), GoneError (it was deleted meanwhile).
        """
        try:
            self._parent(file)
            with file.path.open("rb") as source, self._files.open_output_stream(self._name(file)) as sink:
                source.seek(file.offset)
                while piece := source.read(_STEP):
                    sink.write(piece)
        except OSError as error:
            if not file.path.exists():
                raise GoneError(f"object {file.description.key!r} was deleted") from None
            raise self._failed("take", file, error) from error
        description = msgspec.structs.replace(file.description, remote=True)
        try:
            return self._disk.leave_head(file, description)
        except FileNotFoundError:
            self.forget(file)
            raise GoneError(f"object {file.description.key!r} was deleted") from None

    def bring(self, head: StoredFile) -> StoredFile:
        """A payload back on the disk, verified. Raises UnavailableError, CorruptedError, ExhaustedError, GoneError."""
        try:
            expires = self._disk.expires_of(head)
        except FileNotFoundError:
            raise GoneError(f"object {head.description.key!r} was deleted") from None
        draft = self._disk.draft(head.offset % 64)
        try:
            try:
                with self._files.open_input_stream(self._name(head)) as source:
                    while piece := source.read(_STEP):
                        draft.write(memoryview(piece))
            except OSError as error:
                raise self._failed("give", head, error) from error
            if draft.crc != head.crc:
                raise self._disk.quarantine(head, "the object store holds something else under its name")
        except BaseException:
            draft.abandon()
            raise
        description = msgspec.structs.replace(head.description, remote=False)
        return self._disk.publish(draft, description, expires)

    def forget(self, file: StoredFile) -> None:
        """Delete a payload in the store. A failure is logged: it costs room there and nothing else."""
        try:
            self._files.delete_file(self._name(file))
        except OSError as error:
            _log.warning("object_store_keeps file=%s why=%s", self._name(file), error)

    def _parent(self, file: StoredFile) -> None:
        if self._files.type_name == "local":
            self._files.create_dir(self._name(file).rpartition("/")[0], recursive=True)

    def _name(self, file: StoredFile) -> str:
        return f"{self._root.rstrip('/')}/{self._disk.name_of(file.description)}"

    def _failed(self, verb: str, file: StoredFile, error: OSError) -> UnavailableError:
        return UnavailableError(f"the object store does not {verb} {self._name(file)}: {str(error)[:300]}")
