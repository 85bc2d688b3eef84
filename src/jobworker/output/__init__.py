"""A job's output: an append-only file that the kernel writes and any number of readers follow."""
