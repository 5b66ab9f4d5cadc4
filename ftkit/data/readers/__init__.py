"""Readers of single formats: each turns one file, folder or hub id into a table."""
