"""What a model can still do: multiple-choice tasks through lm-evaluation-harness, and win rates under a judge model."""
