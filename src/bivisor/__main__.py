"""`python -m bivisor` is the command `bivisor`."""

from bivisor.cli.main import main

if __name__ == "__main__":
    main()
