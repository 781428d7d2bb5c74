"""Tables and figures of the toxicity, fluency and language of continuations, before and after tuning."""
