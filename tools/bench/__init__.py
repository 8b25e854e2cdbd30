"""The benchmark: PPSS against its rivals, in interleaved rounds. `make bench` runs it."""
