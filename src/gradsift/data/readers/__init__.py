"""Real data in the formats that people have them in; bad files are refused in one line."""
