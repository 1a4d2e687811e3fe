"""The graphs of a stage in the formats in which they can be written down."""
