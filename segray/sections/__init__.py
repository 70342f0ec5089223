"""The settings of every section of the configuration, as pydantic models."""
