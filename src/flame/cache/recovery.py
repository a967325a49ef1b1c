"""What a cache finds on its disk when it starts."""

from __future__ import annotations

from flame.cache.blobs import Blob
from flame.cache.disk import Disk, StoredFile
from flame.cache.store import Object, Store, Versioned


def recover(disk: Disk, store: Store) -> list[StoredFile]:
    """Put the objects on a disk into a store; the files that are left over from changes that a crash cut off.

    The youngest base of a key counts, and the patches that follow on it without a gap.
    """
    bases: dict[str, tuple[StoredFile, float | None]] = {}
    patches: dict[str, list[StoredFile]] = {}
    stale: list[StoredFile] = []
    for file, expires in disk.scan():
        if file.description.patch:
            patches.setdefault(file.description.key, []).append(file)
            continue
        other = bases.get(file.description.key)
        if other is not None and _age(other[0]) > _age(file):
            stale.append(file)
            continue
        if other is not None:
            stale.append(other[0])
        bases[file.description.key] = (file, expires)
    for key, (file, expires) in bases.items():
        found = Object(
            key,
            file.description.born,
            file.description.table,
            file.description.tenant,
            Versioned(file.description.version, _on_disk(file)),
            [],
            expires,
        )
        for patch in sorted(patches.pop(key, []), key=_age):
            if patch.description.born == found.born and patch.description.version == found.version + 1:
                found.patches.append(Versioned(patch.description.version, _on_disk(patch)))
            else:
                stale.append(patch)
        store.adopt(found)
    for orphans in patches.values():
        stale += orphans
    return stale


def _on_disk(file: StoredFile) -> Blob:
    return Blob(file.size, file.offset % 64, None, file)


def _age(file: StoredFile) -> tuple[int, int]:
    return file.description.born, file.description.version
