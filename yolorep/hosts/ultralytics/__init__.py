"""Hooks and evaluation for the `ultralytics` package."""
