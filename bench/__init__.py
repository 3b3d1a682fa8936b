"""The figures of the design, each with its baseline in the same run: `python -m bench`."""
