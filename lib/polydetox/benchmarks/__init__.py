"""Capability benchmarks: multiple-choice questions before and after tuning, through lm-evaluation-harness."""
