"""What `ray job submit` runs: one short file a job, no logic of its own."""
