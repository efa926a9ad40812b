"""Stages: one published idea per file."""
