"""Generated messages of the contract in `proto/flame/v1`; made by `tools/generate_proto.py`.

They live in a descriptor pool of their own, so that `flame` and another package with messages of the same names
can be imported into one process.

The classes are made straight from the C runtime when it is there: the modules that protoc writes import protobuf's
pure Python implementation and its text format as well, which takes three times as long, and every instance of a
service pays that at its start.
"""

TYPE_CHECKING = False  # like typing's, without its import
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from google.protobuf.descriptor import Descriptor, FileDescriptor

try:
    from google._upb._message import DescriptorPool, MessageMeta
except ImportError:
    from google.protobuf.descriptor_pool import DescriptorPool

    MessageMeta = None

POOL = DescriptorPool()


def build(descriptor: bytes, module: "dict[str, Any]") -> "FileDescriptor":
    """Put a file of the contract into the pool and its messages and enums into the module `module` (its globals)."""
    file = POOL.AddSerializedFile(descriptor)
    if MessageMeta is None:
        from google.protobuf.internal import builder

        builder.BuildTopDescriptorsAndMessages(file, module["__name__"], module)
        return file
    from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

    for name, enum in file.enum_types_by_name.items():
        module[name] = EnumTypeWrapper(enum)
        module.update((value.name, value.number) for value in enum.values)
    module.update(_messages(file.message_types_by_name, module["__name__"], ""))
    return file


def _messages(descriptors: "Mapping[str, Descriptor]", module: str, prefix: str) -> "dict[str, Any]":
    """A class for each message and the messages nested in it."""
    from google.protobuf.message import Message

    made: dict[str, Any] = {}
    for name, descriptor in descriptors.items():
        members: dict[str, Any] = _messages(descriptor.nested_types_by_name, module, f"{prefix}{name}.")
        members.update(DESCRIPTOR=descriptor, __module__=module, __qualname__=prefix + name)
        made[name] = MessageMeta(name, (Message,), members)
    return made
