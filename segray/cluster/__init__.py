"""The Ray side: connecting, resources, jobs, telemetry, and the actor that labels."""
