"""Publish tasks to Kafka."""
