"""How Taskyard is deployed; embedded Kafka and Valkey for a laptop."""
