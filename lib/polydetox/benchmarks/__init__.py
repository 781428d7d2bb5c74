"""Multiple-choice questions, stereotypes and refusals before and after tuning, through lm-evaluation-harness."""
