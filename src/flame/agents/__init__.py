"""Sandboxes as tools of agents: an MCP server, and adapters for frameworks. Each module needs the extra of its name."""
