"""From a model to a prepared model: record, assign, apply, state."""
