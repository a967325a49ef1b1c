"""One script per contender; each is run as a process of its own and prints one JSON object per line."""
