"""The hypercalls, a module for each: decode the arguments, check them, carry out."""
