"""The real system put up for a run of its own, as `taskyard demo` and `taskyard replay` do: started, fed, counted."""
