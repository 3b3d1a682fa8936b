"""`python -m taskyard.dispatcher.cli`: the same as the command `taskyard`, whichever environment's Python runs it."""

from taskyard.dispatcher.cli import main

if __name__ == "__main__":
    main()
