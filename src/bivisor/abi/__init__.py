"""What others specified: numbers, structures and their names, a module for each document. Nothing here acts."""
