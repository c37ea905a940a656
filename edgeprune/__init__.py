"""edgeprune fits a language model to a device. See edgeprune.types for the records, edgeprune.cli for the verbs."""

__version__ = "0.1.0"
