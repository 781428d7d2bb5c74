"""A controlled world: small models pretrained on a phrasebook, whose alignment of languages is set and not found."""
