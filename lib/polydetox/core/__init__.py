"""What everything else stands on: configuration, artefacts, resuming, errors, languages, places."""
