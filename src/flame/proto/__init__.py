"""Generated messages of the contract in `proto/flame/v1`; made by `tools/generate_proto.py`.

They live in a descriptor pool of their own, so that `flame` and another package with messages of the same names
can be imported into one process.
"""

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
