"""What runs inside a sandbox: the service, the kernel, the commands. It imports little, so that it starts quickly."""
