"""What a command does: one module for each, called with its settings by the command line and from Python."""
