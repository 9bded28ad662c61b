"""The numeric stack: dtypes, qparams, observers and fake quantizes. Never imports the config."""
