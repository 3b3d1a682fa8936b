"""The wire: tasks, assignments, outcomes, topic names, codec and the generated JSON Schema."""
