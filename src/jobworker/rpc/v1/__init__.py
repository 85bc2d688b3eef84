"""Generated from proto/jobworker/v1; ``make proto`` writes it."""
