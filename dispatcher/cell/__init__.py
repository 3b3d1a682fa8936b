"""The live state: the function library, its typed client and its in-memory twin."""
