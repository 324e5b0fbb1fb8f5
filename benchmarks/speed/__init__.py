"""The table of times against others: what `speed_table.py` measures."""
