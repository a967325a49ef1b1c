"""The object cache: a daemon that keeps objects in shared memory and on disk, and serves them over Arrow Flight."""
