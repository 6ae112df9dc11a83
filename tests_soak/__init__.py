"""Mixed load with failures for an hour: what the gateway takes stays what it was."""
