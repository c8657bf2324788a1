"""The recipes that come with distill, as package data."""
