"""The parent of every job: a small process that outlives servers and knows how jobs ended."""
