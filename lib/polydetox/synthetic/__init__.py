"""The synthetic multilingual setting: small models whose alignment with English is set in pretraining."""
