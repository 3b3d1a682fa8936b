"""Place tasks on instances: pure decisions, the live state, the loops and the command line."""
