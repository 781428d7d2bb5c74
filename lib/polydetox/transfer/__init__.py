"""How near the translations of a sentence lie in a model, and how that goes with the transfer of detoxification."""
