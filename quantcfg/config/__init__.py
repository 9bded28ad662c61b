"""The config stack: text, schema, presets and rules. Never imports torch."""
