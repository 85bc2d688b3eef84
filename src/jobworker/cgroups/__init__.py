"""Limits on what a job may use, and the cgroup v2 tree that enforces them."""
