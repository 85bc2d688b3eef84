"""The registry of all jobs and of what has happened to them: a file of SQLite, and who reads it."""
