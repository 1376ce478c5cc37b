"""Studies: many small pretraining runs that together answer a question."""
