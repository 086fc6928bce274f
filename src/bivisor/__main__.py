"""The command `bivisor`, also as `python -m bivisor`: Ctrl-C is heard from the first moment on."""

import sys


def main() -> None:
    """Run the command line and leave with its exit status."""
    try:
        from bivisor.cli.main import main as command

        command()
    except KeyboardInterrupt:  # while what it needs was still being loaded
        sys.exit(130)


if __name__ == "__main__":
    main()
