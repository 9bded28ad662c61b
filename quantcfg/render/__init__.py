"""What people see: tables, progress and errors, drawn with rich."""
