"""Kafka, as the dispatcher uses it: the one package of this layer that imports aiokafka, which is untyped."""

from taskyard.dispatcher.kafka import closed

closed.mend()
