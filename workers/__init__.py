"""The worker SDK: register an instance, read its queue, run handlers, finish."""
