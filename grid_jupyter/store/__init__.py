"""What a Node or Network keeps: rows in a SQL database, bytes in files that a row names only while they exist."""
